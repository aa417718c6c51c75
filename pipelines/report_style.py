"""The report's style: light and dark, wide and narrow, with nothing fetched from anywhere."""

CSS = """
:root {
  --paper: #fbfbf9; --card: #fff; --ink: #1b1d22; --soft: #63676f; --line: #dcdde0; --faint: #eeeff1;
  --cool: #0b6fb8; --warm: #c2570c; --good: #2c8a4b; --bad: #b3372f; color-scheme: light dark;
}
@media(prefers-color-scheme:dark) {
  :root {
    --paper: #131519; --card: #1b1e24; --ink: #e9eaec; --soft: #a0a5ae; --line: #343840; --faint: #24282f;
    --cool: #5db4f2; --warm: #f5a05a; --good: #6cc98a; --bad: #f08379;
  }
}
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
}
main { max-width: 1180px; margin: 0 auto; padding: 40px 30px 80px }
h1 {
  text-wrap: balance; font-size: clamp(26px,3.6vw,40px); line-height: 1.15; letter-spacing: -.015em;
  margin: 4px 0 12px;
}
h2 {
  font-size: 25px; letter-spacing: -.01em; line-height: 1.2; margin: 64px 0 6px; padding-top: 22px;
  border-top: 1px solid var(--line);
}
h3 { font-size: 18px; margin: 30px 0 10px }
h3 small,h2 small,summary small { font-weight: 400; color: var(--soft); font-size: 15px; margin-left: 8px }
p { margin: 0 0 12px; max-width: 74ch }
.note,.lead { color: var(--soft) }
.kicker { color: var(--soft); margin: 0; font-size: 15px }
.summary { font-size: 18px; max-width: 70ch }
code,pre { font: 13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace }
code { overflow-wrap: anywhere }
pre { background: var(--faint); padding: 14px 16px; border-radius: 8px; overflow-x: auto; margin: 8px 0 16px }
.top { display: grid; grid-template-columns: 1fr 250px; gap: 30px; align-items: center }
.turning { width: 100%; aspect-ratio: 1; background: var(--turn) center/contain no-repeat }
.numbers {
  display: grid; grid-template-columns: repeat(auto-fit,minmax(128px,1fr)); gap: 1px; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; overflow: hidden; margin: 22px 0 26px;
}
.numbers div { box-shadow: 0 0 0 1px var(--line); padding: 13px 16px }
.numbers b {
  display: block; font-size: 25px; line-height: 1.15; letter-spacing: -.01em;
  font-variant-numeric: tabular-nums;
}
.numbers span { color: var(--soft); font-size: 14px; line-height: 1.3; display: block; margin-top: 3px }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; margin: 6px 0 10px }
th,td { padding: 8px 14px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { font-weight: 600; color: var(--soft); font-size: 14px; vertical-align: bottom }
th:first-child,td:first-child,td.l,th.l { text-align: left }
tr.best td { background: color-mix(in srgb,var(--cool) 10%,transparent); font-weight: 600 }
td small { color: var(--soft); font-weight: 400 }
td.wrap { white-space: normal; overflow-wrap: anywhere; min-width: 150px }
.up { color: var(--good) }
.down { color: var(--bad) }
.charts {
  display: grid; grid-template-columns: repeat(auto-fit,minmax(300px,1fr)); gap: 26px; margin-top: 14px;
}
.charts figure,.quad figure,.crops figure { margin: 0 }
.charts figcaption { font-weight: 600; margin-bottom: 2px }
.charts figcaption small { font-weight: 400; color: var(--soft); display: block; font-size: 14px }
.chart { width: 100%; height: auto; display: block }
.chart text {
  font-family: inherit!important; paint-order: stroke; stroke: var(--paper); stroke-width: 3px;
  stroke-linejoin: round;
}
.bar { display: flex; height: 38px; border-radius: 8px; overflow: hidden; gap: 2px; margin: 16px 0 10px }
.bar i { min-width: 3px }
.key {
  display: flex; flex-wrap: wrap; gap: 6px 22px; padding: 0; margin: 0 0 14px; list-style: none;
  font-size: 15px;
}
.key i,.legend i {
  display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px;
  vertical-align: -1px;
}
.key b { font-variant-numeric: tabular-nums }
.key span { color: var(--soft) }
.roundtop {
  display: grid; grid-template-columns: minmax(0,1.1fr) minmax(0,1fr); gap: 30px; align-items: center;
}
.crops { display: grid; grid-template-columns: repeat(6,1fr); gap: 14px 12px }
.rowname { margin: 22px 0 8px; font-weight: 600 }
.rowname small { font-weight: 400; color: var(--soft); margin-left: 6px; font-size: 14px }
.crops figcaption { font-size: 12.5px; line-height: 1.35; color: var(--soft); margin-top: 5px }
.crops figcaption b { color: var(--ink); font-variant-numeric: tabular-nums }
.crop { width: 100%; display: block; border-radius: 8px; background: #7c7468; aspect-ratio: 1 }
.kept .crop { box-shadow: 0 0 0 2px var(--good) }
.lost .crop { box-shadow: 0 0 0 2px var(--bad) }
.tag { font-weight: 600 }
.kept .tag { color: var(--good) }
.lost .tag { color: var(--bad) }
.crop path { fill: none; stroke-linecap: round; stroke-linejoin: round }
.rim { stroke: #000; stroke-opacity: .55; stroke-width: 2.3 }
.bone { stroke-width: 1.1 }
.rim.dot { stroke-width: 4.6 }
.dot { stroke-width: 3.1 }
.faint { stroke-width: 1.7; stroke-opacity: .75 }
.two .bone,.two .dot:not(.rim),.two .faint { stroke: #35d0ff }
.three .bone,.three .dot:not(.rim),.three .faint { stroke: #ff9a2e }
.mesh { opacity: var(--mesh,.85) }
.tools {
  display: flex; flex-wrap: wrap; gap: 8px 24px; align-items: center; position: sticky; top: 0; z-index: 2;
  background: var(--paper); padding: 10px 0; margin: 4px 0 4px; font-size: 15px;
}
.tools label,.tools span { display: inline-flex; align-items: center; gap: 8px }
.tools label { cursor: pointer }
.tools i {
  display: inline-block; width: 20px; height: 4px; border-radius: 2px; background: #35d0ff;
  outline: 1px solid #0006;
}
.tools i.o { background: #ff9a2e }
.tools input[type=range] { width: 150px }
body:has(#two:not(:checked)) .crops .two,body:has(#three:not(:checked)) .crops .three { display: none }
.cards { display: grid; grid-template-columns: repeat(3,1fr); gap: 18px }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 12px }
.quad { display: grid; grid-template-columns: 1fr 1fr; gap: 10px }
.quad figcaption { font-size: 13px; color: var(--soft); margin-top: 3px }
.shape { width: 100%; aspect-ratio: 1; display: block; border-radius: 8px; background: var(--faint) }
.facts {
  display: flex; flex-wrap: wrap; gap: 1px 16px; font-size: 14px; color: var(--soft); margin: 8px 0 0;
  line-height: 1.45;
}
.facts b { color: var(--ink); font-variant-numeric: tabular-nums }
h3.group::before {
  content: ""; display: inline-block; width: 12px; height: 12px; border-radius: 50%; margin-right: 9px;
  background: var(--soft);
}
h3.good::before { background: var(--good) }
h3.bad::before { background: var(--bad) }
.template { display: grid; grid-template-columns: 400px 1fr; gap: 36px; align-items: center }
.template .turning { background-color: var(--faint); border-radius: 12px }
.legend { columns: 2; column-gap: 30px; list-style: none; padding: 0; margin: 0 0 16px; max-width: 420px }
.legend li { break-inside: avoid; padding: 2px 0 }
details { margin: 10px 0 }
summary { cursor: pointer; font-weight: 600; padding: 6px 0 }
details.round>summary { font-size: 18px; padding: 14px 0 6px }
details img { max-width: 100% }
footer { margin-top: 60px; color: var(--soft); font-size: 14px }
@media(max-width:820px) {
  main { padding: 24px 16px 60px }
  .top,.roundtop,.template { grid-template-columns: 1fr; gap: 16px }
  .top .turning { max-width: 210px; margin: auto }
  .crops { grid-template-columns: repeat(3,1fr) }
  .cards { grid-template-columns: 1fr }
  h2 { margin-top: 48px }
  .summary { font-size: 17px }
}
@media(max-width:520px) {
  .tools { position: static }
  .crops { grid-template-columns: repeat(2,1fr) }
  .numbers { grid-template-columns: 1fr 1fr }
  th,td { padding: 7px 9px }
  td small { display: block }
}
@media print {
  .tools { display: none }
}
"""
