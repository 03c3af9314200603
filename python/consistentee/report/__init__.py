"""The page that shows a run: figures measured, plotted, written."""
