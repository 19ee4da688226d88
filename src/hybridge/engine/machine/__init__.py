"""What this process is granted of the machine: processors, memory limits and threads."""
