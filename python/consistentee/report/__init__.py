"""The report page: measured, plotted, written."""
