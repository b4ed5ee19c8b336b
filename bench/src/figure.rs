//! A figure: what was measured, beside what it is measured against.

use anyhow::{Context, Result};
use serde::Serialize;

use crate::stats::Samples;
use crate::targets;

/// One result. Serialised, it is one line of the machine-readable output.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// Which benchmark.
    pub id: String,
    /// Which figure of it.
    pub what: String,
    /// Median of `n` runs, or what [`Figure::tail`] makes of them.
    pub value: f64,
    /// Unit of `value` and `baseline_value`.
    pub unit: &'static str,
    /// What was measured beside it in the same process run; `None` for an absolute figure.
    pub baseline: Option<&'static str>,
    /// Median of the baseline.
    pub baseline_value: Option<f64>,
    /// `value / baseline_value`.
    pub ratio: Option<f64>,
    /// Runs.
    pub n: usize,
    /// Least of the runs.
    pub min: f64,
    /// Greatest of the runs.
    pub max: f64,
}

impl Figure {
    /// A figure without a baseline.
    ///
    /// # Errors
    /// When there are no samples.
    pub fn absolute(
        id: &str,
        what: impl Into<String>,
        unit: &'static str,
        value: &Samples,
    ) -> Result<Figure> {
        let what = what.into();
        let none = || format!("{id}/{what}: nothing was measured");
        Ok(Figure {
            id: id.to_owned(),
            value: value.median().with_context(none)?,
            unit,
            baseline: None,
            baseline_value: None,
            ratio: None,
            n: value.len(),
            min: value.min().with_context(none)?,
            max: value.max().with_context(none)?,
            what,
        })
    }

    /// A figure beside its baseline.
    ///
    /// # Errors
    /// When either has no samples, or the baseline is 0.
    pub fn against(
        id: &str,
        what: impl Into<String>,
        unit: &'static str,
        value: &Samples,
        baseline: &'static str,
        baseline_samples: &Samples,
    ) -> Result<Figure> {
        let mut figure = Figure::absolute(id, what, unit, value)?;
        let base = baseline_samples
            .median()
            .filter(|b| *b != 0.0)
            .with_context(|| format!("{id}/{}: the baseline was not measured", figure.what))?;
        figure.baseline = Some(baseline);
        figure.baseline_value = Some(base);
        figure.ratio = Some(figure.value / base);
        Ok(figure)
    }

    /// The 99th percentile of many single events, beside their own median.
    ///
    /// # Errors
    /// When there are no samples, or the median is 0.
    pub fn tail(id: &str, what: impl Into<String>, unit: &'static str, value: &Samples) -> Result<Figure> {
        let mut figure = Figure::against(id, what, unit, value, "its median", value)?;
        figure.value = value.quantile(0.99).with_context(|| format!("{id}: nothing was measured"))?;
        figure.ratio = figure.baseline_value.map(|base| figure.value / base);
        Ok(figure)
    }

    /// One JSON object, one line.
    ///
    /// # Errors
    /// Never for finite numbers.
    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string(self)?)
    }

    /// One line for people. The spread is that of `value`, in per cent of the median.
    #[must_use]
    pub fn line(&self) -> String {
        let spread = if self.value == 0.0 { 0.0 } else { (self.max - self.min) / self.value * 100.0 };
        let against = match (self.baseline, self.baseline_value, self.ratio) {
            (Some(name), Some(value), Some(ratio)) => {
                format!("{:>10} {:<22} {ratio:>7.3}x", number(value), name)
            }
            _ => format!("{:>10} {:<22} {:>8}", "", "", ""),
        };
        let verdict = match targets::of(&self.id, &self.what) {
            None => String::new(),
            Some(target) => {
                let met = if target.is_met(self) { "met" } else { "NOT MET" };
                format!("target {target}: {met}")
            }
        };
        format!(
            "{:<10} {:<22} {:>10} {:<8} {against}  n={:<3} {}..{} (±{:.0} %)  {verdict}",
            self.id,
            self.what,
            number(self.value),
            self.unit,
            self.n,
            number(self.min),
            number(self.max),
            spread / 2.0,
        )
        .trim_end()
        .to_owned()
    }
}

/// Head of the lines that [`Figure::line`] makes.
#[must_use]
pub fn header() -> String {
    format!(
        "{:<10} {:<22} {:>10} {:<8} {:>10} {:<22} {:>8}  runs, min..max",
        "id", "what", "value", "unit", "baseline", "", "ratio"
    )
}

/// Four significant digits or the whole number, whichever is longer.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 || v == 0.0 => format!("{value:.3}"),
        _ => format!("{value:.5}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        values.iter().copied().collect()
    }

    #[test]
    fn the_ratio_is_of_medians() {
        let f = Figure::against(
            "exit",
            "hypercall",
            "us",
            &samples(&[80.0, 90.0, 300.0]),
            "floor",
            &samples(&[75.0]),
        )
        .unwrap();
        assert_eq!((f.value, f.ratio, f.min, f.max, f.n), (90.0, Some(1.2), 80.0, 300.0, 3));
    }

    #[test]
    fn a_tail_stands_beside_its_median() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        let f = Figure::tail("start", "first_reply/p99", "ms", &samples(&values)).unwrap();
        assert_eq!((f.value, f.baseline_value, f.n, f.max), (99.0, Some(50.5), 100, 100.0));
    }

    #[test]
    fn the_object_has_the_agreed_keys_in_their_order() {
        let f = Figure::absolute("http", "exits_per_request", "exits", &samples(&[0.5])).unwrap();
        assert_eq!(
            f.json().unwrap(),
            r#"{"id":"http","what":"exits_per_request","value":0.5,"unit":"exits","baseline":null,"baseline_value":null,"ratio":null,"n":1,"min":0.5,"max":0.5}"#
        );
    }

    #[test]
    fn nothing_measured_is_an_error_and_not_a_figure() {
        assert!(Figure::absolute("http", "1", "1/s", &samples(&[])).is_err());
        assert!(Figure::against("http", "1", "1/s", &samples(&[1.0]), "native", &samples(&[])).is_err());
        assert!(Figure::against("http", "1", "1/s", &samples(&[1.0]), "native", &samples(&[0.0])).is_err());
    }

    #[test]
    fn the_line_says_whether_the_target_is_met() {
        let line = |v| {
            Figure::against("exit", "hypercall", "us", &samples(&[v]), "floor", &samples(&[100.0]))
                .unwrap()
                .line()
        };
        assert!(line(109.0).ends_with("target <= 1.1x: met"), "{}", line(109.0));
        assert!(line(111.0).ends_with("target <= 1.1x: NOT MET"), "{}", line(111.0));
    }
}
