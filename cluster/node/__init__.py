"""What runs on the machines of a cluster: how Ray starts there, is kept, drained and ended."""
