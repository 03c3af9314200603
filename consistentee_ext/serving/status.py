"""A page for a person: what the server does now."""

from __future__ import annotations

import html
import time

from consistentee_ext.serving.service import Service

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta http-equiv="refresh" content="2">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto;
  padding: 0 1rem }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere }}
h2 {{ font-size: 1.2rem }}
table {{ border-collapse: collapse; width: 100% }}
th {{ text-align: left; font-weight: normal; width: 9rem; opacity: .7 }}
td {{ font-variant-numeric: tabular-nums }}
.bar {{ background: #3b6fb6; height: .8em; display: inline-block; margin-right: .5em }}
</style>
</head>
<body>
<h1>{title}</h1>
<table id="state">{state}</table>
<h2>Exit layers</h2>
<table id="exits">{exits}</table>
</body>
</html>
"""


def status_page(model_id: str, service: Service) -> str:
    """HTML that loads itself again each two seconds; of this worker, where there are several."""
    batcher, metrics = service.batcher, service.metrics
    counts = dict(metrics.exit_counts)
    rows = sum(counts.values())
    state = {
        "state": "ready" if batcher.is_healthy else "draining",
        "level": batcher.level.name,
        "rows a second": f"{metrics.rows_a_second():.1f}",
        "rows": f"{rows:,}",
        "queue": f"{batcher.queued_tokens:,} of {service.limits.queue_tokens:,} tokens",
        "requests now": str(service.running),
        "up": f"{time.monotonic() - metrics.started:,.0f} s",
    }
    lines = [
        f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in state.items()
    ]
    bars = []
    for layer in service.model.encoder.exit_layers:
        share = counts.get(layer, 0) / max(rows, 1)
        bar = f'<span class="bar" style="width:{70 * share:.1f}%"></span>'
        bars.append(f"<tr><th>{layer}</th><td>{bar}{share:.1%}</td></tr>")
    return PAGE.format(title=html.escape(model_id), state="\n".join(lines), exits="\n".join(bars))
