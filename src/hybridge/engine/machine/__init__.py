"""The machine's resources that this process may use: processors, memory and threads."""
