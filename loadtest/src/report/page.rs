//! The page: one file, without scripts and without anything from elsewhere.

use std::fmt::Write as _;

use super::{
    Kept,
    plot::{bars, escape, percentiles, ratios},
    ratio_of,
    targets::{TARGETS, Verdict},
    value_of,
};
use crate::figure::Figure;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --soft: #d0d7de; --one: #0969da; --good: #1a7f37; --bad: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --soft: #30363d; --one: #58a6ff; --good: #3fb950; --bad: #f85149; } }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 980px; margin: 2rem auto; padding: 0 1rem; color: var(--ink); background: var(--paper); }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--soft); vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.met { color: var(--good); } .missed { color: var(--bad); font-weight: 600; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.name { text-anchor: end; } .tick { text-anchor: middle; }
.axis { stroke: var(--ink); stroke-dasharray: 3 3; } .grid { stroke: var(--soft); }
.interval { stroke: var(--one); stroke-width: 3; opacity: .5; } .target { stroke: var(--bad); stroke-width: 2; }
.dot, .bar { fill: var(--one); } .series { fill: none; stroke-width: 2; }
.c0 { stroke: #0969da; } .c1 { stroke: #bf8700; } .c2 { stroke: #1a7f37; } .c3 { stroke: #cf222e; } .c4 { stroke: #8250df; } .c5 { stroke: #57606a; }
.key { stroke-width: 6; fill: none; }
";

/// All that was kept, as one page.
pub(super) fn page(kept: &[Kept], about: &str) -> String {
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>towline: what it costs</title><style>{STYLE}</style></head><body>\n<h1>towline: what it costs</h1>\n\
         <p>Measured on {}. Ratios are medians of pairs that ran in turns (A B B A), with their 95 % confidence interval \
         (bootstrap).</p>\n",
        escape(&about.replace('`', ""))
    );
    text += "<h2>Targets</h2>\n";
    text += &targets(kept);
    for Kept { command, figures } in kept {
        let _ = write!(text, "<h2>{}</h2>\n{}", escape(command), rows(figures));
        text += &ratios(figures);
        text += &percentiles(figures);
        text += &bars(figures);
    }
    text += "</body></html>\n";
    text
}

fn targets(kept: &[Kept]) -> String {
    let mut text =
        "<table><tr><th>what</th><th>measured</th><th>ratio (95 %)</th><th>target</th><th></th></tr>\n"
            .to_owned();
    for target in TARGETS {
        let found: Vec<&Figure> =
            kept.iter().flat_map(|kept| &kept.figures).filter(|figure| target.is_about(figure)).collect();
        if found.is_empty() {
            let (what, bound) = (escape(target.what), escape(&target.bound()));
            let _ = writeln!(
                text,
                "<tr><td>{what}</td><td>–</td><td>–</td><td>{bound}</td><td>not measured</td></tr>"
            );
        }
        for figure in found {
            let (class, verdict) = match target.judge(figure) {
                Verdict::Met => ("met", "met"),
                Verdict::Missed => ("missed", "missed"),
                Verdict::Open => ("open", "open"),
            };
            let _ = writeln!(
                text,
                "<tr><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td>{}</td><td class=\"{class}\">{verdict}</td></tr>",
                escape(&figure.name),
                escape(&value_of(figure)),
                escape(&ratio_of(figure)),
                escape(&target.bound())
            );
        }
    }
    text + "</table>\n"
}

fn rows(figures: &[Figure]) -> String {
    let mut text =
        "<table><tr><th>what</th><th>measured</th><th>ratio (95 %)</th><th>n</th></tr>\n".to_owned();
    for figure in figures {
        let _ = writeln!(
            text,
            "<tr><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td></tr>",
            escape(&figure.name),
            escape(&value_of(figure)),
            escape(&ratio_of(figure)),
            figure.n
        );
    }
    text + "</table>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let figures =
            vec![Figure::of_pairs("goodput, relay alone, 1 stream", "Gb/s", "haproxy-x1", &[(1.0, 2.0)])];
        let page = page(&[Kept { command: "compare".into(), figures }], "2 cores");
        assert!(page.contains("<td class=\"missed\">missed</td>"), "{page}");
        for from_elsewhere in ["http:", "https:", "src=", "href=", "<script", "@import", "url("] {
            assert!(!page.contains(from_elsewhere), "{from_elsewhere}");
        }
        assert_eq!(page.matches("<table>").count(), page.matches("</table>").count());
    }
}
