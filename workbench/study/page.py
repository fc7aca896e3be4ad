"""The report's HTML around its parts, and its look: light, dark and in print, nothing fetched."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

STYLE = """
:root { --page: #f6f7f9; --card: #fff; --ink: #1c2126; --soft: #5b646e; --line: #e1e5ea; --accent: #0b62a8;
  --warn-page: #fff4e5; --warn-ink: #7a3d00; --warn-line: #f0b866; --fine-page: #eaf6ef; --fine-ink: #145a36;
  --fine-line: #93cfae; --no: #b3261e; }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #14171b; --card: #1d2126; --ink: #e7eaee; --soft: #a0a9b4; --line: #323840; --accent: #7cc0ff;
    --warn-page: #33260f; --warn-ink: #ffd49a; --warn-line: #7c5a1d; --fine-page: #14291f; --fine-ink: #a5e0bf;
    --fine-line: #2c5f45; --no: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 24px 64px; }
.status { margin: 0 0 28px; padding: 10px 16px; border-radius: 8px; border: 1px solid; font-size: 15px; }
.status.warn { background: var(--warn-page); color: var(--warn-ink); border-color: var(--warn-line); }
.status.fine { background: var(--fine-page); color: var(--fine-ink); border-color: var(--fine-line); }
.eyebrow { margin: 0; color: var(--soft); font-size: 14px; letter-spacing: .02em; }
h1 { margin: 2px 0 8px; font-size: 32px; line-height: 1.2; letter-spacing: -.015em; text-wrap: balance; }
.question { margin: 0; font-size: 19px; color: var(--soft); text-wrap: pretty; max-width: 46em; }
h2 { margin: 44px 0 12px; font-size: 21px; letter-spacing: -.01em; }
h3 { margin: 20px 0 6px; font-size: 16px; }
.answer { margin-top: 24px; padding: 4px 24px 10px; background: var(--card); border: 1px solid var(--line);
  border-left: 4px solid var(--accent); border-radius: 8px; }
.answer h2 { margin: 14px 0 4px; font-size: 14px; color: var(--accent); letter-spacing: .02em; }
.answer ul { list-style: none; margin: 0; padding: 0; }
.answer li { margin: 8px 0; }
.answer li:first-child { font-size: 19px; line-height: 1.45; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; line-height: 1.35;
  font-variant-numeric: tabular-nums; }
th, td { padding: 8px 9px; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; font-size: 12.5px; vertical-align: bottom; }
tbody tr:last-child td { border-bottom: 0; }
.n { text-align: right; white-space: nowrap; }
th.n { white-space: normal; }
td small { display: block; color: var(--soft); font-size: 11.5px; }
td i { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 7px; }
td:first-child { min-width: 11em; }
tr.out { color: var(--soft); }
tr.same td { color: var(--soft); }
.tag { margin-left: 17px; padding: 1px 7px; border-radius: 99px; border: 1px solid var(--warn-line); font-size: 11.5px;
  background: var(--warn-page); color: var(--warn-ink); }
code, pre { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
td code { font-size: 11.5px; }
td b + code { display: block; margin: 1px 0 0 17px; max-width: 14em; color: var(--soft); white-space: normal;
  overflow-wrap: anywhere; }
pre { margin: 0; padding: 12px 16px; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  overflow-x: auto; }
.note, .reasons, figcaption { color: var(--soft); font-size: 13.5px; }
.reasons { margin: 10px 0; padding-left: 20px; }
figure { margin: 24px 0; }
.card { padding: 14px; background: #fff; border: 1px solid var(--line); border-radius: 8px; }
.card img { display: block; width: 100%; height: auto; margin: 0 auto; }
@media screen and (prefers-color-scheme: dark) { /* figures are drawn on white: lightness turned over, hues kept */
  .card { background: var(--card); } .card img { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; }
  td i { filter: invert(1) hue-rotate(180deg); } }
figcaption { margin-top: 8px; max-width: 60em; }
figcaption span { white-space: nowrap; opacity: .75; }
details { margin: 14px 0; }
summary { cursor: pointer; color: var(--accent); font-size: 14.5px; margin-bottom: 8px; }
.checks { list-style: none; margin: 0; padding: 0; }
.checks li { display: flex; flex-wrap: wrap; gap: 0 10px; padding: 3px 0; }
.checks b { width: 1em; color: var(--fine-ink); }
.checks .no b { color: var(--no); }
.checks .no { color: var(--no); font-weight: 600; }
.checks span { color: var(--soft); font-size: 14px; font-weight: 400; }
@media (max-width: 640px) { main { padding: 16px 14px 40px; } h1 { font-size: 26px; }
  .answer { padding: 2px 16px 8px; } }
@media print {
  :root { --page: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #ccc; --accent: #084d85; --warn-page: #fff;
    --warn-ink: #7a3d00; --fine-page: #fff; --fine-ink: #145a36; --no: #b3261e; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  figure, tr, .answer { break-inside: avoid; } h2, h3 { break-after: avoid; }
  table { font-size: 8pt; } th, td { padding: 3px 4px; } th { font-size: 7.5pt; } td:first-child { min-width: 7em; }
  td small { font-size: 7pt; white-space: normal; } td code { white-space: normal; overflow-wrap: anywhere; }
  .scroll { overflow: visible; border: 0; } .card { padding: 0; border: 0; } summary { list-style: none; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
