"""Floor 0: values, ports, the record store and run directories; NumPy and Arrow only."""
