"""What a sweep takes: memory, room on the nodes, time, money; said before it starts and beside what came."""
