"""From files to token ids: tables, splits, tasks, the demo's corpus."""
