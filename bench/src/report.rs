//! Figures beside their limits and requirements, as a table for the terminal and as a page of `docs/`.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::measure::Page;
use crate::results::Saved;
use crate::sample::Sample;

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Time.
    Seconds,
    /// Memory or data.
    Bytes,
    /// Throughput.
    BytesPerSecond,
    /// Throughput of small things.
    ObjectsPerSecond,
    /// Things.
    Count,
    /// A part of something.
    Share,
}

/// What is asked of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Required {
    /// Our median of the ratio to the limit is no smaller.
    RatioAtLeast(f64),
    /// It is no larger.
    RatioAtMost(f64),
    /// Every run of ours is no larger.
    AtMost(f64),
    /// Our median is no larger.
    MedianAtMost(f64),
    /// Our median is no smaller.
    AtLeast(f64),
    /// It is better than the limit: the ratio is above one.
    MoreThanLimit,
    /// It is there for comparison.
    Nothing,
}

/// What ours is measured against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// Its name.
    pub what: String,
    /// Its runs, each the neighbour of one of ours.
    pub sample: Sample,
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What is measured.
    pub what: String,
    /// Of both samples.
    pub unit: Unit,
    /// Our runs.
    pub ours: Sample,
    /// What they are compared with.
    pub limit: Option<Limit>,
    /// What is asked.
    pub required: Required,
}

impl Row {
    /// The ratio to the limit, run by run.
    pub fn ratio(&self) -> Option<Sample> {
        self.ours.ratio_to(&self.limit.as_ref()?.sample)
    }

    /// Whether what is asked is met; none when nothing is asked or there is nothing to compare with.
    pub fn met(&self) -> Option<bool> {
        Some(self.shortfall()? <= 0.0)
    }

    /// How far the figure is from what is asked, as a part of that; negative when it is better.
    fn shortfall(&self) -> Option<f64> {
        let ratio = || self.ratio().map(|ratio| ratio.median());
        match self.required {
            Required::RatioAtLeast(least) => ratio().map(|ratio| (least - ratio) / least),
            Required::RatioAtMost(most) => ratio().map(|ratio| (ratio - most) / most),
            Required::AtMost(most) => Some((self.ours.max() - most) / most),
            Required::MedianAtMost(most) => Some((self.ours.median() - most) / most),
            Required::AtLeast(least) => Some((least - self.ours.median()) / least),
            // Equal is not more.
            Required::MoreThanLimit => {
                ratio().map(|ratio| if ratio > 1.0 { 1.0 - ratio } else { f64::EPSILON.max(1.0 - ratio) })
            }
            Required::Nothing => None,
        }
    }

    fn cells(&self) -> [String; 6] {
        let spread = |sample: &Sample, show: &dyn Fn(f64) -> String| match sample.len() {
            1 => show(sample.median()),
            _ => format!("{} ({} to {})", show(sample.median()), show(sample.min()), show(sample.max())),
        };
        let value = |sample: &Sample| spread(sample, &|number| self.unit.show(number));
        let required = match self.required {
            Required::RatioAtLeast(least) => format!(">= {least}x"),
            Required::RatioAtMost(most) => format!("<= {most}x"),
            Required::AtMost(most) | Required::MedianAtMost(most) => format!("<= {}", self.unit.show(most)),
            Required::AtLeast(least) => format!(">= {}", self.unit.show(least)),
            Required::MoreThanLimit => "more".to_owned(),
            Required::Nothing => String::new(),
        };
        let met = match self.met() {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "",
        };
        [
            self.what.clone(),
            value(&self.ours),
            self.limit.as_ref().map(|limit| format!("{}: {}", limit.what, value(&limit.sample))).unwrap_or_default(),
            self.ratio().map(|ratio| spread(&ratio, &|number| format!("{number:.2}"))).unwrap_or_default(),
            required,
            met.to_owned(),
        ]
    }
}

const HEADINGS: [&str; 6] = ["figure", "ours", "limit", "ratio", "required", "met"];

impl Unit {
    /// A number with its unit, short.
    pub fn show(self, number: f64) -> String {
        match self {
            Self::Seconds if number < 0.02 => format!("{:.2} ms", number * 1e3),
            Self::Seconds if number < 1.0 => format!("{:.0} ms", number * 1e3),
            Self::Seconds => format!("{number:.2} s"),
            Self::Bytes => binary(number),
            Self::BytesPerSecond if number < 1e9 => format!("{:.0} MB/s", number / 1e6),
            Self::BytesPerSecond => format!("{:.2} GB/s", number / 1e9),
            Self::ObjectsPerSecond => format!("{number:.0}/s"),
            Self::Count => format!("{number:.0}"),
            Self::Share => format!("{number:.4}"),
        }
    }
}

fn binary(bytes: f64) -> String {
    if bytes < 1024.0 * 1024.0 * 1024.0 {
        format!("{:.1} MiB", bytes / f64::from(1 << 20))
    } else {
        format!("{:.2} GiB", bytes / f64::from(1 << 30))
    }
}

/// Rows as a table in columns, for a terminal.
pub fn table(rows: &[Row]) -> String {
    let mut lines = vec![HEADINGS.map(str::to_owned)];
    lines.extend(rows.iter().map(Row::cells));
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..HEADINGS.len()).map(|column| width(column).unwrap_or_default()).collect();
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<_> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

/// The whole page: of each measurement how it is made, and what was saved of it last.
pub fn page(page: &Page, machine: &Machine, measurements: &[(&str, &str, Option<&Saved>)]) -> String {
    let Page { command, promises, .. } = page;
    let mut text = format!(
        "# Benchmarks\n\nWritten by `{command}`; not edited by hand. Ours and its limit are measured in turn in the same run, with programs\n\
         built for release; a figure is the median of its runs, with the smallest and the largest; a ratio is of neighbouring runs. What is\n\
         required is what `{promises}` promises.\n\n",
    );
    let Machine { processor, cores, memory_bytes, kernel } = machine;
    let memory = binary(*memory_bytes as f64);
    let _ = writeln!(
        text,
        "Machine: {processor}, {cores} logical processors, {memory} of memory, Linux {kernel}; files on tmpfs.\n"
    );
    text.push_str(&summary(measurements));
    for (name, how, saved) in measurements {
        let _ = writeln!(text, "## {name}\n\n{}\n", how.trim());
        let Some(saved) = saved else {
            text.push_str("Not measured yet.\n\n");
            continue;
        };
        let Saved { commit, date, runs, .. } = saved;
        if let Some(missing) = &saved.not_built {
            let _ = writeln!(text, "Not measured at {commit}, {date}: {missing}\n");
            continue;
        }
        let _ = writeln!(text, "{}", markdown(&saved.rows));
        let plural = if *runs == 1 { "" } else { "s" };
        let _ = writeln!(text, "Commit {commit}, {date}, {runs} run{plural}.\n");
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// What is below its target, and by how much.
fn summary(measurements: &[(&str, &str, Option<&Saved>)]) -> String {
    let saved = measurements.iter().filter_map(|(_, _, saved)| *saved);
    let rows: Vec<_> = saved.flat_map(|saved| &saved.rows).filter(|row| row.met().is_some()).collect();
    let below: Vec<_> = rows.iter().filter(|row| row.met() == Some(false)).collect();
    let missing: Vec<_> =
        measurements.iter().filter(|(_, _, saved)| saved.is_none_or(|saved| saved.rows.is_empty())).collect();
    let mut text = format!("{} of {} required figures are met.", rows.len() - below.len(), rows.len());
    if !missing.is_empty() {
        let names: Vec<_> = missing.iter().map(|(name, ..)| *name).collect();
        let _ = write!(text, " Not measured: {}.", names.join(", "));
    }
    text.push_str("\n\n");
    for row in below {
        let [what, ours, _, ratio, required, _] = row.cells();
        let absolute = matches!(row.required, Required::AtMost(_) | Required::MedianAtMost(_) | Required::AtLeast(_));
        let figure = if absolute { ours } else { ratio };
        let percent = row.shortfall().unwrap_or_default() * 100.0;
        let _ = writeln!(text, "- Below target: {what}: {figure}, required {required}; short by {percent:.0} %.");
    }
    if text.ends_with(".\n") {
        text.push('\n');
    }
    text
}

fn markdown(rows: &[Row]) -> String {
    let mut text = format!("| {} |\n|{}\n", HEADINGS.join(" | "), "---|".repeat(HEADINGS.len()));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.cells().join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::CACHE;

    fn row(ours: &[f64], limit: Option<&[f64]>, required: Required) -> Row {
        let sample = |runs: &[f64]| Sample::new(runs.to_vec()).unwrap();
        let limit = limit.map(|runs| Limit { what: "sendfile".to_owned(), sample: sample(runs) });
        Row { what: "transfer".to_owned(), unit: Unit::BytesPerSecond, ours: sample(ours), limit, required }
    }

    #[test]
    fn a_figure_is_met_or_not_by_what_is_required_of_it() {
        let met = |ours, limit, required| row(ours, limit, required).met();
        let (slow, fast): (&[f64], &[f64]) = (&[7e8, 6e8, 8e8], &[1e9, 1e9, 1e9]);
        assert_eq!(met(slow, Some(fast), Required::RatioAtLeast(0.7)), Some(true));
        assert_eq!(met(slow, Some(fast), Required::RatioAtLeast(0.71)), Some(false));
        assert_eq!(met(slow, Some(fast), Required::RatioAtMost(0.69)), Some(false));
        assert_eq!(met(slow, None, Required::AtMost(8e8)), Some(true));
        assert_eq!(met(slow, None, Required::AtMost(7.9e8)), Some(false), "every run counts");
        assert_eq!(met(slow, None, Required::MedianAtMost(7e8)), Some(true));
        assert_eq!(met(slow, None, Required::MedianAtMost(6.9e8)), Some(false));
        assert_eq!(met(slow, None, Required::AtLeast(7e8)), Some(true), "a speed is a median");
        assert_eq!(met(slow, None, Required::AtLeast(7.1e8)), Some(false));
        assert_eq!(met(slow, Some(fast), Required::Nothing), None);
        assert_eq!(met(slow, None, Required::RatioAtLeast(0.1)), None, "nothing to compare with");
        assert_eq!(met(fast, Some(fast), Required::MoreThanLimit), Some(false));
        assert_eq!(met(fast, Some(slow), Required::MoreThanLimit), Some(true));
    }

    #[test]
    fn a_table_has_a_line_for_each_figure() {
        let text =
            table(&[row(&[5e8], Some(&[1e9]), Required::RatioAtLeast(0.7)), row(&[1e9], None, Required::Nothing)]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].contains("500 MB/s   sendfile: 1.00 GB/s  0.50   >= 0.7x   **no**"), "{text}");
    }

    #[test]
    fn the_page_says_what_is_below_target_and_what_was_not_measured() {
        let machine = Machine { processor: "X".to_owned(), cores: 2, memory_bytes: 3 << 30, kernel: "6.12".to_owned() };
        let saved = |rows, not_built| Saved {
            commit: "abc".to_owned(),
            date: "2026-11-23".to_owned(),
            runs: 1,
            machine: machine.clone(),
            rows,
            not_built,
        };
        let (good, missing) = (
            saved(
                vec![
                    row(&[5e8], Some(&[1e9]), Required::RatioAtLeast(0.7)),
                    row(&[9e8], Some(&[1e9]), Required::RatioAtLeast(0.7)),
                ],
                None,
            ),
            saved(vec![], Some("it is not there".to_owned())),
        );
        let text = page(
            &CACHE,
            &machine,
            &[("transfer", "How.", Some(&good)), ("restart", "How.", Some(&missing)), ("memory", "How.", None)],
        );
        assert!(text.contains("1 of 2 required figures are met. Not measured: restart, memory."), "{text}");
        assert!(
            text.contains("- Below target: transfer: 0.50, required >= 0.7x; short by 29 %.\n\n## transfer"),
            "{text}"
        );
        assert!(text.contains("Not measured at abc, 2026-11-23: it is not there"), "{text}");
        assert!(text.contains("Machine: X, 2 logical processors, 3.00 GiB of memory, Linux 6.12"), "{text}");
        assert!(text.ends_with("Not measured yet.\n") && !text.contains("\n\n\n"), "{text}");
    }
}
