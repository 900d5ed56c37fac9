"""The template of report.html: layout, and the script that sorts and filters the table of utterances."""

from __future__ import annotations

import base64
import hashlib
from string import Template

SCRIPT = """
const table = document.getElementById("worst"), body = table.tBodies[0], rows = [...body.rows];
const value = (row, column) => {
  const cell = row.cells[column];
  return cell.className === "n" ? parseFloat(cell.dataset.value ?? cell.textContent) : cell.textContent;
};
[...table.tHead.rows[0].cells].forEach((head, column) => {
  const button = head.querySelector("button");
  if (!button) return;
  button.addEventListener("click", () => {
    const numeric = rows.length && rows[0].cells[column].className === "n";
    const now = head.getAttribute("aria-sort");
    const up = now ? now === "descending" : !numeric;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    rows.sort((one, two) => {
      const a = value(one, column), b = value(two, column);
      return (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1);
    });
    body.append(...rows);
  });
});
const filter = document.getElementById("filter"), count = document.getElementById("count");
filter.addEventListener("input", () => {
  const wanted = filter.value.toLowerCase();
  let left = 0;
  for (const row of rows) {
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
    left += !row.hidden;
  }
  count.textContent = wanted ? left + " found" : "";
});
document.addEventListener("play", event => {
  for (const other of document.querySelectorAll("audio")) if (other !== event.target) other.pause();
}, true);
"""

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 75rem; padding: 1rem; color: #1c1c1c;
background: #fff; }
h1 { font-size: 1.9rem; margin: .2rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: .3rem 0; }
.title, small, dt, label, p { color: #555; } .title, dd, td, th { overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dd { margin: 0; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 0 2rem; }
table { border-collapse: collapse; } td, th { text-align: left; vertical-align: top; padding: .15rem .5rem .15rem 0; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.bars { width: 100%; } .bars th { font-weight: normal; min-width: 4rem; max-width: 9rem; }
.bars td:last-child { white-space: nowrap; padding-left: .5rem; }
.bar { position: relative; width: 60%; padding: 0; }
.bar i { display: block; height: 1rem; margin: .25rem 0; background: #9cc0de; }
.bar u { position: absolute; top: .7rem; height: 2px; background: #333; }
#worst { width: 100%; } #worst th { position: sticky; top: 0; background: #fff; border-bottom: 2px solid #888; }
#worst td { border-bottom: 1px solid #ddd; padding-top: .4rem; padding-bottom: .4rem; }
#worst td:first-child { min-width: 10rem; }
#worst td:nth-child(2) { min-width: 5rem; } #worst thead th, td.n { white-space: nowrap; }
button { font: inherit; font-weight: bold; border: 0; background: none; padding: 0; cursor: pointer; color: #174e7c; }
[aria-sort=ascending] button::after { content: " \\25b2"; } [aria-sort=descending] button::after { content: " \\25bc"; }
#filter { font: inherit; padding: .2rem .4rem; width: min(20rem, 90%); }
b { font-weight: 600; display: inline-block; } .s { color: #b3261e; } .d { color: #8a5a00; background: #fff3d6; }
.i { color: #0b5d8f; background: #e2f1fb; }
audio { height: 2rem; margin-top: .3rem; width: 18rem; max-width: 100%; }
@media (max-width: 45rem) {
  body { padding: .6rem; } dl { display: block; } dd { margin-bottom: .4rem; }
  #worst, #worst thead, #worst tbody { display: block; } #worst thead tr { display: flex; flex-wrap: wrap; gap: .3rem 1rem; }
  #worst th { position: static; border: 0; }
  #worst tbody tr { display: block; border-bottom: 1px solid #bbb; padding: .5rem 0; }
  #worst tbody tr[hidden] { display: none; } #worst td { display: inline; border: 0; padding-right: .8rem; }
  #worst td.t { display: block; }
  #worst td.n::before { content: attr(data-label) "\\00a0"; color: #555; }
}
"""

_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()

PAGE = Template(
    f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>$rate $title</title>
<meta http-equiv="Content-Security-Policy" content="script-src 'sha256-{_HASH}'; connect-src 'none';
 object-src 'none'; frame-src 'none'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>
<h1>$rate</h1><p class="title">$title</p>
<dl>$facts</dl>
<div class="side">
<section><h2>$measure by length</h2><p>$unit of the reference; the line is the 95 % interval</p>$length</section>
<section><h2>$measure by speaker$speakers</h2><p>worst first</p>$speaker</section>
</div>
<h2>Most frequent errors</h2><div class="side" id="confused">$confused</div>
<h2>Utterances</h2>
<p>$shown worst first; a click on a column's name sorts.
<b class="s">(REFERENCE-&gt;HYPOTHESIS)</b> <b class="d">(DELETED-&gt;*)</b> <b class="i">(*-&gt;INSERTED)</b></p>
<p><label>Show those with <input id="filter" type="search"></label> <span id="count"></span></p>
<table id="worst"><thead><tr><th><button>utterance</button></th><th><button>speaker</button></th>
<th aria-sort="descending"><button>errors</button></th><th><button>$measure&nbsp;%</button></th><th><button>$unit</button></th>
<th><button>seconds</button></th><th>alignment</th></tr></thead><tbody>
$rows</tbody></table>
<script>{SCRIPT}</script>
</body></html>
"""
)
