//! The chart: bars on a logarithmic axis, readable on light and on dark pages.

use std::fmt::Write;

use crate::host::Host;
use crate::sheet::{Better, Sheet};
use crate::stats::{digits, Summary};

const WIDTH: f64 = 860.0;
const LABELS: f64 = 330.0;
const VALUES: f64 = 90.0;
const BAR: f64 = 24.0;
const HEAD: f64 = 58.0;

const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#1f2328}.head{font-weight:600;font-size:15px}.axis,.small{fill:#59636e;font-size:11px}\
.end{text-anchor:end}.middle{text-anchor:middle}.grid{stroke:#d1d9e0}.other{fill:#9aa4af}.apppot{fill:#1f6feb}.floor{fill:#bf8700}.whisker{stroke:#1f2328;stroke-width:1.5}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.axis,.small{fill:#9198a1}.grid{stroke:#3d444d}.other{fill:#656c76}.apppot{fill:#4493f8}.floor{fill:#d29922}.whisker{stroke:#f0f6fc}}";

/// A panel: bars of one unit.
struct Panel<'a> {
    title: &'a str,
    unit: &'a str,
    bars: Vec<(String, Summary)>,
}

impl Panel<'_> {
    fn height(&self) -> f64 {
        HEAD + BAR * self.bars.len() as f64 + 16.0
    }
}

/// The chart as SVG.
pub(crate) fn svg(host: &Host, sheets: &[Sheet]) -> String {
    let panels: Vec<Panel> = [start(sheets), inside(sheets)]
        .into_iter()
        .flatten()
        .collect();
    let height = panels.iter().map(Panel::height).sum::<f64>() + 28.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" role=\"img\"><title>AppPot benchmark</title><style>{STYLE}</style>\n"
    );
    let mut top = 0.0;
    for panel in &panels {
        draw(&mut text, panel, top);
        top += panel.height();
    }
    let quiet = if host.warning().is_some() {
        ", NOT QUIET"
    } else {
        ""
    };
    let note = format!(
        "{}, {} CPUs, {}{quiet}; whiskers: quartiles",
        host.cpu, host.cpus, host.date
    );
    // Writing into a String cannot fail.
    let _ = writeln!(
        text,
        "<text class=\"small\" x=\"8\" y=\"{}\">{}</text>\n</svg>",
        top + 14.0,
        escape(&note)
    );
    text
}

fn start(sheets: &[Sheet]) -> Option<Panel<'_>> {
    let sheet = sheets.iter().find(|sheet| sheet.id == "start")?;
    (!sheet.bars.is_empty()).then(|| Panel {
        title: "Start to finish of true",
        unit: "ms",
        bars: sheet.bars.clone(),
    })
}

/// What costs more in a guest, as multiples of the host.
fn inside(sheets: &[Sheet]) -> Option<Panel<'_>> {
    let sheet = sheets.iter().find(|sheet| sheet.id == "inside")?;
    let first = sheet
        .figures
        .iter()
        .map(|figure| figure.key.split('.').nth(1))
        .next()?;
    let bars = sheet
        .figures
        .iter()
        .filter(|figure| figure.better == Better::Less && figure.key.split('.').nth(1) == first);
    let bars: Vec<_> = bars
        .map(|figure| {
            let title = figure.title.split(" ÷ ").next().unwrap_or_default();
            (format!("{title} "), figure.value)
        })
        .collect();
    (!bars.is_empty()).then_some(Panel {
        title: "In the guest (own kernel if there is one), as a multiple of the host",
        unit: "×",
        bars,
    })
}

/// A logarithmic axis.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    /// Whole decades around everything that is drawn.
    fn around(bars: &[(String, Summary)]) -> Self {
        let low = bars.iter().map(|(_, it)| it.low).fold(f64::MAX, f64::min);
        let high = bars.iter().map(|(_, it)| it.high).fold(1.0, f64::max);
        Axis {
            low: low.clamp(0.01, 1.0).log10().floor(),
            high: high.log10().ceil().max(1.0),
        }
    }

    fn x(&self, value: f64) -> f64 {
        let part = (value.max(1e-3).log10() - self.low) / (self.high - self.low);
        LABELS + part.max(0.0) * (WIDTH - LABELS - VALUES)
    }

    fn decades(&self) -> impl Iterator<Item = f64> {
        (self.low as i32..=self.high as i32).map(|power| 10f64.powi(power))
    }
}

fn draw(text: &mut String, panel: &Panel, top: f64) {
    let axis = Axis::around(&panel.bars);
    let bottom = top + panel.height() - 16.0;
    let _ = writeln!(
        text,
        "<text class=\"head\" x=\"8\" y=\"{}\">{}, {}, logarithmic</text>",
        top + 22.0,
        escape(panel.title),
        panel.unit
    );
    for decade in axis.decades() {
        let x = axis.x(decade);
        let (from, label) = (top + HEAD - 8.0, top + HEAD - 14.0);
        let _ = writeln!(
            text,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{from}\" y2=\"{bottom}\"/>\
             <text class=\"axis middle\" x=\"{x:.1}\" y=\"{label}\">{decade}</text>"
        );
    }
    for (index, (name, value)) in panel.bars.iter().enumerate() {
        bar(
            text,
            &axis,
            top + HEAD + BAR * index as f64,
            (name, *value, panel.unit),
        );
    }
}

fn bar(text: &mut String, axis: &Axis, y: f64, (name, value, unit): (&str, Summary, &str)) {
    let class = match name {
        _ if name.starts_with("AppPot") || unit == "×" => "apppot",
        _ if name.starts_with("floor") => "floor",
        _ => "other",
    };
    let (left, right) = (axis.x(0.0), axis.x(value.median));
    let (low, high) = (axis.x(value.low), axis.x(value.high));
    let middle = y + 8.0;
    let _ = writeln!(
        text,
        "<text class=\"end\" x=\"{}\" y=\"{}\">{}</text>\
         <rect class=\"{class}\" x=\"{left:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"16\" rx=\"2\"/>\
         <line class=\"whisker\" x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{middle}\" y2=\"{middle}\"/>\
         <text x=\"{:.1}\" y=\"{}\">{} {unit}</text>",
        LABELS - 10.0,
        y + 13.0,
        escape(name),
        (right - left).max(1.0),
        right.max(high) + 6.0,
        y + 13.0,
        digits(value.median),
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
