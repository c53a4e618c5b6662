"""Ray as a command uses it: started on this machine or joined at an address, with the code that its workers import."""
