"""The look of a report: system fonts, one accent, light and dark."""

STYLE = """
:root { color-scheme: light dark; --paper: #faf9f7; --card: #ffffff; --ink: #22262b; --soft: #6a7078; --hair: #e6e3dd;
  --accent: #2f6f62; --yes: #2c7a4b; --no: #b4463c; --seen: #8a6d1d; --unseen: #2f6f62;
  --c0: #2f6f62; --c1: #c4713b; --c2: #4a6fb5; --c3: #9a5a9e; --c4: #b7a23c; --c5: #8b949e; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --card: #1e2125; --ink: #e6e4df; --soft: #9aa0a8;
  --hair: #2f343a; --accent: #7cc4b2; --yes: #7cc79a; --no: #e68a80; --seen: #d9b95c; --unseen: #7cc4b2;
  --c0: #7cc4b2; --c1: #e59b69; --c2: #8fb0ee; --c3: #cf97d3; --c4: #d8c565; --c5: #9aa0a8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); -webkit-font-smoothing: antialiased;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 64px 28px 48px; }
h1 { font-size: 38px; line-height: 1.15; font-weight: 640; letter-spacing: -0.02em; margin: 0 0 14px; }
h2 { font-size: 22px; font-weight: 620; letter-spacing: -0.01em; margin: 0 0 2px; }
h3 { font-size: 14px; font-weight: 600; margin: 26px 0 8px; }
.card > h3 { margin-top: 2px; }
.lead { font-size: 18px; color: var(--soft); max-width: 44em; margin: 0; }
.told { color: var(--soft); margin: 0; max-width: 44em; }
section { margin-top: 60px; }
section > div:first-of-type, .strip { margin-top: 18px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); gap: 18px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); gap: 18px; }
.questions { display: grid; grid-template-columns: repeat(auto-fill, minmax(225px, 1fr)); gap: 18px; }
.card { background: var(--card); border: 1px solid var(--hair); border-radius: 14px; padding: 18px; }
.trio { display: grid; grid-template-columns: 1fr 1fr 1.55fr; gap: 12px; align-items: end; }
figure { margin: 0; }
img { width: 100%; height: auto; display: block; border-radius: 8px; background: #fff; outline: 1px solid #8883;
  outline-offset: -1px; }
figcaption { font-size: 12.5px; color: var(--soft); margin-top: 6px; }
.drawn figcaption { color: var(--ink); font-weight: 600; }
.prompt { font-size: 17px; font-weight: 560; line-height: 1.35; margin: 14px 0 8px; }
.question { display: grid; grid-template-columns: 76px 1fr; gap: 14px; align-items: start; padding: 14px; }
.question .prompt { margin: 2px 0 6px; font-size: 16px; }
.asked { color: var(--soft); margin: 0; font-size: 14px; line-height: 1.35; }
.tags { display: flex; gap: 8px 12px; align-items: center; flex-wrap: wrap; margin: 0; font-size: 13px; }
.tag { border: 1px solid currentColor; border-radius: 99px; padding: 0 9px; line-height: 1.6; }
.seen { color: var(--seen); } .unseen { color: var(--unseen); }
.mark { font-weight: 600; } .yes { color: var(--yes); } .no { color: var(--no); }
.yes::before { content: "\\2713\\00a0"; } .no::before { content: "\\2717\\00a0"; }
.note { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 15px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 14px 7px 0; border-bottom: 1px solid var(--hair); font-weight: 400; }
thead th { color: var(--soft); font-size: 13px; padding-top: 0; }
.scores th:first-child { width: 42%; } .scores td:nth-child(3) { width: 26%; }
.scores td { white-space: nowrap; }
.bar { position: relative; height: 8px; border-radius: 4px; background: var(--hair); }
.bar i:first-child { display: block; height: 100%; border-radius: 4px; background: var(--accent); }
.tick { position: absolute; top: -4px; width: 2px; height: 16px; margin-left: -1px; background: var(--ink); }
.chart { width: 100%; height: auto; display: block; font-size: 11.5px; }
.chart text { fill: var(--soft); } .grid { stroke: var(--hair); }
.line { fill: none; stroke-width: 1.9; stroke-linejoin: round; stroke-linecap: round; }
polyline.dashed { stroke-dasharray: 1 5; stroke-width: 2.4; }
.line.c0 { stroke: var(--c0); } .line.c1 { stroke: var(--c1); } .line.c2 { stroke: var(--c2); }
.line.c3 { stroke: var(--c3); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 20px; font-size: 13px; color: var(--soft); margin: 6px 0 0; }
.legend b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
.legend i { display: inline-block; width: 18px; border-top: 2.5px solid; vertical-align: 4px; margin-right: 7px; }
.legend i.dashed { border-top-style: dotted; }
.legend .c0 { color: var(--c0); } .legend .c1 { color: var(--c1); } .legend .c2 { color: var(--c2); }
.legend .c3 { color: var(--c3); }
.strip { display: flex; gap: 2px; height: 14px; border-radius: 7px; overflow: hidden; margin-bottom: 14px; }
.s0 { background: var(--c2); } .s1 { background: var(--c4); } .s2 { background: var(--c1); }
.s3 { background: var(--c3); }
.s4 { background: var(--c0); } .s5 { background: var(--c5); }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 10px; }
.stages td:nth-child(2) { text-align: right; white-space: nowrap; } .stages td:last-child { color: var(--soft); }
.sum th, .sum td { font-weight: 600; border-bottom: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 8px 28px; margin: 18px 0 0; font-size: 15px; }
dt { color: var(--soft); } dd { margin: 0; }
footer { margin-top: 64px; color: var(--soft); font-size: 13px; }
@media (max-width: 560px) { main { padding: 32px 16px; } .cards, .charts { grid-template-columns: 1fr; }
  h1 { font-size: 30px; } dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 10px; } }
@media print { :root { --paper: #fff; } section { break-inside: avoid; } }
"""
