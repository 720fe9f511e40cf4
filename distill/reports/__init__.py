"""A run as pages: tables, plots and one JSON."""
