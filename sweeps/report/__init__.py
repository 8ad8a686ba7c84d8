"""The report: HTML, Markdown and pictures, from results and verdict alone."""
