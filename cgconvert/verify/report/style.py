"""How the HTML report looks: one style sheet, light and dark."""

from __future__ import annotations

__all__ = ["STYLE"]

# Colours keep a contrast of 4.5 to their ground in both modes; no verdict is told by colour alone.
STYLE = """
:root { color-scheme: light dark;
  --ground: #ffffff; --raised: #f6f8fa; --text: #1f2328; --quiet: #57606a; --rule: #d0d7de;
  --pass: #1a7f37; --info: #57606a; --warning: #8a5a00; --fail: #b91c1c; --point: #0759b8;
  --kind0: #0759b8; --kind1: #b45309; --kind2: #15803d; --kind3: #7e22ce; --kind4: #0e7490;
  --kind5: #be185d; --kind6: #6b5b00; --kind7: #64748b; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #0d1117; --raised: #161b22; --text: #e6edf3; --quiet: #9da7b3; --rule: #3d444d;
  --pass: #3fb950; --info: #9da7b3; --warning: #d29922; --fail: #ff7b72; --point: #6cb6ff;
  --kind0: #6cb6ff; --kind1: #f0a04b; --kind2: #56d364; --kind3: #d2a8ff; --kind4: #39c5cf;
  --kind5: #f778ba; --kind6: #d9cb66; --kind7: #8b98a9; } }
body { background: var(--ground); color: var(--text); margin: 2rem auto; max-width: 72rem;
  padding: 0 1.5rem; font: 15px/1.5 system-ui, sans-serif; }
h1, h2, h3 { line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 0 0 .25rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
article { border-top: 1px solid var(--rule); margin-top: 2rem; padding-top: 1.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid var(--rule); padding: .3rem .75rem .3rem .5rem; text-align: left;
  vertical-align: top; }
thead th { background: var(--raised); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 500; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.detail, .quiet, figcaption, dt { color: var(--quiet); }
.detail { overflow-wrap: anywhere; }
.verdict { font-weight: 600; white-space: nowrap; }
.pass { color: var(--pass); } .info { color: var(--info); font-weight: 400; }
.warning { color: var(--warning); } .fail { color: var(--fail); }
tr.failed > * { box-shadow: inset 0 -100px color-mix(in srgb, var(--fail) 9%, transparent); }
code, dd { font-family: ui-monospace, monospace; font-size: .87em; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.5rem; margin: 0; }
dd { margin: 0; }
a { color: inherit; }
figure { margin: 0; }
svg { display: block; height: auto; width: 100%; }
svg text { fill: var(--quiet); font: 11.5px system-ui, sans-serif; }
svg path { fill: none; }
.grid { stroke: var(--rule); stroke-width: .7; }
.line { stroke: var(--warning); stroke-width: 1.3; stroke-dasharray: 6 4; }
.points { stroke: var(--point); stroke-linecap: round; stroke-width: 3.4; stroke-opacity: .75; }
.spread { stroke: var(--point); stroke-opacity: .28; stroke-width: 1.6; }
.tensor { stroke-linecap: round; stroke-width: 4.4; }
.join { stroke-opacity: .45; stroke-width: 1; }
.kind0 { stroke: var(--kind0); } .kind1 { stroke: var(--kind1); } .kind2 { stroke: var(--kind2); }
.kind3 { stroke: var(--kind3); } .kind4 { stroke: var(--kind4); } .kind5 { stroke: var(--kind5); }
.kind6 { stroke: var(--kind6); } .kind7 { stroke: var(--kind7); }
.wrong { stroke: var(--fail); stroke-width: 8; }
.points.above, .points.broken { stroke: var(--fail); stroke-opacity: 1; stroke-width: 5; }
@media print { article { break-inside: avoid-page; } }
"""
