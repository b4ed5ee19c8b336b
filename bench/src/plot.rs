//! Plots of figures as SVG: bars or lines over a few named places, with axes, labels and units; a file that stands alone and follows
//! whether its reader prefers light or dark.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

/// How values are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A bar for each value, those of a place beside each other.
    Bars,
    /// A line for each series.
    Lines,
}

/// How the vertical axis counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// From 0 in equal steps.
    Linear,
    /// In powers of ten.
    Logarithmic,
}

/// A value with its spread: least, value, greatest.
pub type Spread = (f64, f64, f64);

/// A plot.
#[derive(Clone, Debug)]
pub struct Plot {
    /// What is shown.
    pub title: &'static str,
    /// What the places are.
    pub across: &'static str,
    /// What the values are, with their unit.
    pub upwards: &'static str,
    /// How they are drawn.
    pub form: Form,
    /// How the vertical axis counts.
    pub scale: Scale,
    /// Places on the horizontal axis.
    pub places: Vec<String>,
    /// Series: a name, and a value for each place that has one.
    pub series: Vec<(String, Vec<Option<Spread>>)>,
    /// A line at a value, and what it is: a promise.
    pub mark: Option<(f64, String)>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 72.0;
const BOTTOM: f64 = 56.0;

/// Colours that can be told apart on both backgrounds, and by people who see few of them (Okabe and Ito).
const COLOURS: [&str; 4] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7"];

const STYLE: &str = "\
svg{font:13px sans-serif;background:#fff}text{fill:#222}.paper{fill:#fff}.axis{stroke:#444}.grid{stroke:#ddd}.spread{stroke:#222}.mark{stroke:#b00;\
stroke-dasharray:6 4}.says{fill:#b00}\
@media(prefers-color-scheme:dark){svg{background:#1b1d21}text{fill:#ddd}.paper{fill:#1b1d21}.axis{stroke:#aaa}.grid{stroke:#3a3d42}\
.spread{stroke:#eee}.mark{stroke:#f77}.says{fill:#f77}}";

impl Plot {
    /// Writes it to `folder/name.svg`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, folder: &Path, name: &str) -> Result<()> {
        let path = folder.join(name).with_extension("svg");
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        std::fs::write(&path, self.svg()).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Lowest and highest value of the vertical axis, and where its lines are.
    fn axis(&self) -> (f64, f64, Vec<f64>) {
        let values = || self.series.iter().flat_map(|(_, values)| values.iter().flatten());
        let mark = self.mark.as_ref().map(|(at, _)| *at);
        let most = values().map(|(.., most)| *most).chain(mark).fold(0.0, f64::max);
        match self.scale {
            Scale::Linear => {
                // About five steps of 1, 2 or 5 times a power of ten.
                let rough = if most > 0.0 { most / 5.0 } else { 1.0 };
                let power = 10f64.powf(rough.log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|s| *s >= rough * 0.999);
                let step = step.unwrap_or(rough);
                let steps = (most / step).ceil().max(1.0) as u32;
                (0.0, step * f64::from(steps), (0..=steps).map(|n| step * f64::from(n)).collect())
            }
            Scale::Logarithmic => {
                let least = values().map(|(least, ..)| *least).chain(mark).filter(|v| *v > 0.0);
                let from = least.fold(f64::MAX, f64::min).log10().floor() as i32;
                let to = (most.max(f64::MIN_POSITIVE).log10().ceil() as i32).max(from + 1);
                (10f64.powi(from), 10f64.powi(to), (from..=to).map(|n| 10f64.powi(n)).collect())
            }
        }
    }

    /// The file.
    #[must_use]
    pub fn svg(&self) -> String {
        let (low, high, lines) = self.axis();
        let part = |value: f64| match self.scale {
            Scale::Linear => (value - low) / (high - low),
            Scale::Logarithmic => (value.max(low) / low).ln() / (high / low).ln(),
        };
        let y = |value: f64| HEIGHT - BOTTOM - part(value) * (HEIGHT - BOTTOM - TOP);
        let place = (WIDTH - LEFT - RIGHT) / self.places.len().max(1) as f64;
        let middle = |n: usize| LEFT + place * (n as f64 + 0.5);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n\
             <title>{0}</title>\n<style>{STYLE}</style>\n\
             <rect class=\"paper\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n\
             <text x=\"{LEFT}\" y=\"24\" font-size=\"16\">{0}</text>\n",
            escaped(self.title)
        );
        let mut add = |line: std::fmt::Arguments<'_>| {
            // A string takes everything.
            let _ = writeln!(out, "{line}");
        };
        let right = WIDTH - RIGHT;
        for value in lines {
            let y = y(value);
            add(format_args!(
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"
            ));
            let text = number(value);
            add(format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                LEFT - 6.0,
                y + 4.0
            ));
        }
        let floor = HEIGHT - BOTTOM;
        add(format_args!(
            "<path class=\"axis\" fill=\"none\" d=\"M{LEFT} {TOP}V{floor}H{right}\"/>\n\
             <text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            f64::midpoint(TOP, floor),
            escaped(self.upwards)
        ));
        for (n, name) in self.places.iter().enumerate() {
            add(format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                middle(n),
                floor + 18.0,
                escaped(name)
            ));
        }
        add(format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            f64::midpoint(LEFT, right),
            HEIGHT - 14.0,
            escaped(self.across)
        ));
        let mut legend = LEFT;
        for (s, (name, values)) in self.series.iter().enumerate() {
            let colour = COLOURS[s % COLOURS.len()];
            add(format_args!(
                "<rect x=\"{legend:.1}\" y=\"38\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"49\">{}</text>",
                legend + 18.0,
                escaped(name)
            ));
            legend += 40.0 + 7.0 * name.chars().count() as f64;
            let width = place * 0.7 / self.series.len() as f64;
            let at = |n: usize| match self.form {
                Form::Bars => middle(n) - place * 0.35 + width * (s as f64 + 0.5),
                Form::Lines => middle(n),
            };
            let mut path = String::new();
            for (n, (least, value, most)) in
                values.iter().enumerate().filter_map(|(n, spread)| Some((n, (*spread)?)))
            {
                let (x, y_value) = (at(n), y(value));
                match self.form {
                    Form::Bars => add(format_args!(
                        "<rect x=\"{:.1}\" y=\"{y_value:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
                        x - width * 0.45,
                        width * 0.9,
                        floor - y_value
                    )),
                    Form::Lines => {
                        let _ =
                            write!(path, "{}{x:.1} {y_value:.1}", if path.is_empty() { 'M' } else { 'L' });
                        add(format_args!(
                            "<circle cx=\"{x:.1}\" cy=\"{y_value:.1}\" r=\"4\" fill=\"{colour}\"/>"
                        ));
                    }
                }
                if least < most {
                    let (top, bottom) = (y(most), y(least));
                    add(format_args!("<path class=\"spread\" d=\"M{x:.1} {top:.1}V{bottom:.1}\"/>"));
                }
                // Beside the line of the spread; of several lines, the first one's below it.
                let below = self.form == Form::Lines && self.series.len() > 1 && s == 0;
                add(format_args!(
                    "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"11\">{}</text>",
                    x + 4.0,
                    if below { y_value + 15.0 } else { y_value - 5.0 },
                    number(value)
                ));
            }
            if !path.is_empty() {
                add(format_args!(
                    "<path fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" d=\"{path}\"/>"
                ));
            }
        }
        if let Some((at, what)) = &self.mark {
            let y = y(*at);
            add(format_args!(
                "<line class=\"mark\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"says\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                right,
                y - 5.0,
                escaped(what)
            ));
        }
        add(format_args!("</svg>"));
        out
    }
}

/// Three significant digits, without zeros that say nothing.
fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let digits = (2 - value.abs().log10().floor() as i32).clamp(0, 6) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(form: Form, scale: Scale) -> Plot {
        Plot {
            title: "a < b",
            across: "guests",
            upwards: "ms",
            form,
            scale,
            places: vec!["1".to_owned(), "10".to_owned()],
            series: vec![
                ("one".to_owned(), vec![Some((0.5, 1.0, 2.0)), Some((3.0, 4.0, 4.5))]),
                ("other".to_owned(), vec![None, Some((40.0, 40.0, 40.0))]),
            ],
            mark: Some((2.0, "promised".to_owned())),
        }
    }

    #[test]
    fn every_value_and_name_is_drawn_inside() {
        for (form, scale) in [(Form::Bars, Scale::Linear), (Form::Lines, Scale::Logarithmic)] {
            let svg = plot(form, scale).svg();
            for text in [">one<", ">other<", ">guests<", ">ms<", ">4<", ">40<", ">promised<", "a &lt; b"] {
                assert!(svg.contains(text), "{text} in {svg}");
            }
            assert!(!svg.contains("NaN") && !svg.contains("inf") && !svg.contains("=\"-"), "{svg}");
            assert_eq!(svg.matches("<path class=\"spread\"").count(), 2);
        }
    }

    #[test]
    fn axes_end_above_the_greatest_value() {
        assert_eq!(plot(Form::Bars, Scale::Linear).axis(), (0.0, 40.0, vec![0.0, 10.0, 20.0, 30.0, 40.0]));
        let (low, high, _) = plot(Form::Bars, Scale::Logarithmic).axis();
        assert!((low - 0.1).abs() < 1e-9 && (high - 100.0).abs() < 1e-9);
    }

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, 0.012_34, 1.0, 2.5, 123.4, 20_000.0].map(number);
        assert_eq!(texts, ["0", "0.0123", "1", "2.5", "123", "20000"]);
    }
}
