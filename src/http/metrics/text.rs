//! Prometheus' text format, version 0.0.4: a family with its help and type, then its samples.

use crate::logic::tally::Histogram;
use std::fmt::Write as _;

/// Names and values of the labels of one sample.
pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

/// A page of families.
#[derive(Debug, Default)]
pub(super) struct Page(String);

impl Page {
    /// The finished text.
    pub(super) fn finish(self) -> String {
        self.0
    }

    /// A family that only grows; its name ends with `_total`.
    pub(super) fn counter(&mut self, name: &str, help: &str) {
        debug_assert!(name.ends_with("_total"), "{name}");
        self.family(name, help, "counter");
    }

    /// A family that goes up and down.
    pub(super) fn gauge(&mut self, name: &str, help: &str) {
        self.family(name, help, "gauge");
    }

    /// A family of distributions.
    pub(super) fn histogram(&mut self, name: &str, help: &str) {
        self.family(name, help, "histogram");
    }

    fn family(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A sample of the family.
    pub(super) fn sample(&mut self, name: &str, labels: Labels<'_>, value: f64) {
        self.0.push_str(name);
        if !labels.is_empty() {
            let pairs: Vec<String> = labels
                .iter()
                .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)))
                .collect();
            let _ = write!(self.0, "{{{}}}", pairs.join(","));
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// A family with one sample, if its value is known.
    pub(super) fn lone(&mut self, name: &str, help: &str, value: Option<f64>) {
        if let Some(value) = value {
            if name.ends_with("_total") {
                self.counter(name, help);
            } else {
                self.gauge(name, help);
            }
            self.sample(name, &[], value);
        }
    }

    /// The samples of one distribution of the family.
    pub(super) fn distribution(&mut self, name: &str, labels: Labels<'_>, histogram: &Histogram) {
        let bucket = format!("{name}_bucket");
        let count = histogram.count() as f64;
        for (bound, below) in histogram.buckets() {
            let bound = bound.to_string();
            let labels = [labels, &[("le", &bound)]].concat();
            self.sample(&bucket, &labels, below as f64);
        }
        let labels_of_all = [labels, &[("le", "+Inf")]].concat();
        self.sample(&bucket, &labels_of_all, count);
        self.sample(&format!("{name}_sum"), labels, histogram.sum());
        self.sample(&format!("{name}_count"), labels, count);
    }
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_in_the_text_format() {
        let mut page = Page::default();
        page.lone("a_total", "What a is.", Some(3.0));
        page.lone("b", "What b is.", None);
        page.gauge("c", "What c is.");
        page.sample("c", &[("model", "odd \"\\name")], 0.25);
        page.histogram("d", "What d is.");
        let mut histogram = Histogram::new(&[0.5, 1.0]);
        histogram.observe(0.75);
        page.distribution("d", &[("x", "y")], &histogram);
        assert_eq!(
            page.finish(),
            "# HELP a_total What a is.\n# TYPE a_total counter\na_total 3\n\
             # HELP c What c is.\n# TYPE c gauge\nc{model=\"odd \\\"\\\\name\"} 0.25\n\
             # HELP d What d is.\n# TYPE d histogram\n\
             d_bucket{x=\"y\",le=\"0.5\"} 0\nd_bucket{x=\"y\",le=\"1\"} 1\nd_bucket{x=\"y\",le=\"+Inf\"} 1\n\
             d_sum{x=\"y\"} 0.75\nd_count{x=\"y\"} 1\n"
        );
    }
}
