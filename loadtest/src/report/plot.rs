//! Plots as inline SVG, without scripts.

use std::{collections::BTreeMap, fmt::Write as _};

use super::targets::TARGETS;
use crate::figure::{Figure, short};

const WIDTH: f64 = 900.0;
const ROW: f64 = 24.0;
const LABELS: f64 = 420.0;
const RIGHT: f64 = 90.0;
const PERCENTILES: [&str; 5] = ["p50", "p90", "p99", "p99.9", "max"];
const COLOURS: usize = 6;

/// Text that can stand in HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn svg(height: f64, inside: &str) -> String {
    format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">{inside}</svg>\n")
}

fn label(text: &str, y: f64) -> String {
    format!("<text x=\"{:.0}\" y=\"{:.1}\" class=\"name\">{}</text>", LABELS - 10.0, y + 4.0, escape(text))
}

/// Ratios on a logarithmic axis: a dot, its interval, the line of equality, and a mark where a target is.
pub(super) fn ratios(figures: &[Figure]) -> String {
    let rows: Vec<(&Figure, f64)> = figures
        .iter()
        .filter_map(|figure| Some((figure, figure.ratio.filter(|ratio| ratio.is_finite() && *ratio > 0.0)?)))
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let ends = rows.iter().flat_map(|(figure, ratio)| {
        let (low, high) = figure.ci95.unwrap_or((*ratio, *ratio));
        [*ratio, low, high]
    });
    let ends = ends.filter(|end| end.is_finite() && *end > 0.0);
    let (low, high) = ends.fold((0.8_f64, 1.25_f64), |(low, high), end| (low.min(end), high.max(end)));
    let place = |ratio: f64| {
        let share = (ratio.clamp(low, high) / low).ln() / (high / low).ln();
        LABELS + share * (WIDTH - LABELS - RIGHT)
    };
    let height = ROW * (rows.len() as f64 + 1.5);
    let mut inside = String::new();
    let equal = place(1.0);
    let _ = write!(
        inside,
        "<line x1=\"{equal:.1}\" x2=\"{equal:.1}\" y1=\"0\" y2=\"{height:.0}\" class=\"axis\"/>"
    );
    let _ = write!(inside, "<text x=\"{equal:.1}\" y=\"{:.1}\" class=\"tick\">1</text>", height - 4.0);
    for (number, (figure, ratio)) in rows.iter().enumerate() {
        let y = ROW * (number as f64 + 0.6);
        inside += &label(&format!("{} × {}", figure.name, figure.against.as_deref().unwrap_or("?")), y);
        if let Some((low, high)) = figure.ci95 {
            let (low, high) = (place(low), place(high));
            let _ = write!(
                inside,
                "<line x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" class=\"interval\"/>"
            );
        }
        for wanted in TARGETS.iter().filter(|target| target.is_about(figure)).filter_map(|t| t.wanted_ratio())
        {
            let x = place(wanted);
            let (top, bottom) = (y - 8.0, y + 8.0);
            let _ = write!(
                inside,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\" class=\"target\"/>"
            );
        }
        let _ = write!(inside, "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"5\" class=\"dot\"/>", place(*ratio));
        let _ = write!(
            inside,
            "<text x=\"{:.1}\" y=\"{:.1}\" class=\"value\">{}</text>",
            WIDTH - RIGHT + 10.0,
            y + 4.0,
            short(*ratio)
        );
    }
    svg(height, &inside)
}

/// Values of one unit as bars.
pub(super) fn bars(figures: &[Figure]) -> String {
    let mut units: BTreeMap<&str, Vec<&Figure>> = BTreeMap::new();
    for figure in figures {
        let plotted = split_percentile(&figure.name).is_some();
        if !plotted && figure.value.is_finite() && figure.value >= 0.0 {
            units.entry(&figure.unit).or_default().push(figure);
        }
    }
    let mut text = String::new();
    for (unit, figures) in units.iter().filter(|(_, figures)| figures.len() > 1) {
        let most = figures.iter().map(|figure| figure.value).fold(f64::MIN_POSITIVE, f64::max);
        let mut inside = String::new();
        for (number, figure) in figures.iter().enumerate() {
            let y = ROW * (number as f64 + 0.6);
            let width = figure.value / most * (WIDTH - LABELS - RIGHT);
            inside += &label(&figure.name, y);
            let _ = write!(
                inside,
                "<rect x=\"{LABELS}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"14\" class=\"bar\"/>",
                y - 7.0
            );
            let (x, y) = (LABELS + width + 6.0, y + 4.0);
            let _ = write!(
                inside,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"value\">{}</text>",
                short(figure.value)
            );
        }
        let heading = if unit.is_empty() { "no unit" } else { unit };
        let _ = write!(text, "<h3>{}</h3>", escape(heading));
        text += &svg(ROW * (figures.len() as f64 + 0.5), &inside);
    }
    text
}

/// `small GET, direct, p99` → (`small GET, direct`, 2).
fn split_percentile(name: &str) -> Option<(&str, usize)> {
    let (rest, last) = name.rsplit_once(", ")?;
    Some((rest, PERCENTILES.iter().position(|percentile| *percentile == last)?))
}

/// Percentiles as lines: milliseconds on a logarithmic axis.
pub(super) fn percentiles(figures: &[Figure]) -> String {
    let mut series: BTreeMap<&str, [Option<f64>; PERCENTILES.len()]> = BTreeMap::new();
    for figure in figures.iter().filter(|figure| figure.unit == "ms" && figure.value > 0.0) {
        if let Some((name, place)) = split_percentile(&figure.name) {
            series.entry(name).or_default()[place] = Some(figure.value);
        }
    }
    series.retain(|_, points| points.iter().flatten().count() > 2);
    if series.is_empty() {
        return String::new();
    }
    let (top, bottom, left, right) = (10.0, 300.0, 70.0, WIDTH - 40.0);
    let all = || series.values().flatten().flatten();
    let low = all().fold(f64::MAX, |low, value| low.min(*value)).log10().floor();
    let high = all().fold(f64::MIN, |high, value| high.max(*value)).log10().ceil().max(low + 1.0);
    let x = |place: usize| left + place as f64 / (PERCENTILES.len() - 1) as f64 * (right - left);
    let y = |value: f64| bottom - (value.log10() - low) / (high - low) * (bottom - top);
    let mut inside = String::new();
    let mut decade = low;
    while decade <= high {
        let (at, value) = (y(10_f64.powf(decade)), 10_f64.powf(decade));
        let _ = write!(
            inside,
            "<line x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" class=\"grid\"/>"
        );
        let _ = write!(
            inside,
            "<text x=\"{:.0}\" y=\"{:.1}\" class=\"name\">{} ms</text>",
            left - 8.0,
            at + 4.0,
            value
        );
        decade += 1.0;
    }
    for (place, name) in PERCENTILES.iter().enumerate() {
        let _ = write!(
            inside,
            "<text x=\"{:.1}\" y=\"{:.1}\" class=\"tick\">{name}</text>",
            x(place),
            bottom + 20.0
        );
    }
    for (number, (name, points)) in series.iter().enumerate() {
        let colour = number % COLOURS;
        let line: Vec<String> = points
            .iter()
            .enumerate()
            .filter_map(|(place, value)| Some(format!("{:.1},{:.1}", x(place), y((*value)?))))
            .collect();
        let _ = write!(inside, "<polyline points=\"{}\" class=\"series c{colour}\"/>", line.join(" "));
        let at = bottom + 44.0 + ROW * number as f64;
        let _ = write!(
            inside,
            "<rect x=\"{left}\" y=\"{:.1}\" width=\"14\" height=\"14\" class=\"key c{colour}\"/>",
            at - 11.0
        );
        let _ = write!(
            inside,
            "<text x=\"{:.0}\" y=\"{at:.1}\" class=\"value\">{}</text>",
            left + 22.0,
            escape(name)
        );
    }
    svg(bottom + 50.0 + ROW * series.len() as f64, &inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_figure_is_plotted_once() {
        let mut figures: Vec<Figure> = ["p50", "p90", "p99"]
            .iter()
            .map(|percentile| Figure::once(format!("GET <b>, {percentile}"), "ms", 0.5, 1))
            .collect();
        figures.push(Figure::of_pairs("a & b", "Gb/s", "direct", &[(1.0, 2.0); 5]));
        figures.push(Figure::once("b", "Gb/s", 4.0, 1));
        let (ratios, bars, lines) = (ratios(&figures), bars(&figures), percentiles(&figures));
        assert_eq!((ratios.matches("<circle").count(), bars.matches("<rect").count()), (1, 2));
        assert_eq!(lines.matches("<polyline").count(), 1);
        let all = format!("{ratios}{bars}{lines}");
        assert!(
            all.contains("a &amp; b × direct") && all.contains("GET &lt;b&gt;") && !all.contains("NaN"),
            "{all}"
        );
    }
}
