//! The one form in which every bench reports: a table, and `target/bench/NAME.json`.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

/// What was measured, in the order in which it first was.
#[derive(Clone, Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
}

/// One figure: all its runs.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was measured.
    pub case: String,
    /// In which surroundings.
    pub variant: String,
    /// Which of its properties.
    pub metric: &'static str,
    /// Of the values.
    pub unit: &'static str,
    /// Sorted; one at least.
    runs: Vec<f64>,
}

impl Report {
    /// Adds a run to the figure of that name.
    pub fn record(
        &mut self,
        case: &str,
        variant: &str,
        (metric, unit): (&'static str, &'static str),
        value: f64,
    ) {
        let found = self.rows.iter().position(|row| row.is(case, variant, metric));
        let index = found.unwrap_or_else(|| {
            let (case, variant) = (case.to_owned(), variant.to_owned());
            self.rows.push(Row { case, variant, metric, unit, runs: Vec::new() });
            self.rows.len() - 1
        });
        let runs = &mut self.rows[index].runs;
        runs.insert(runs.partition_point(|run| run.total_cmp(&value).is_lt()), value);
    }

    /// The figures.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// A figure, if it was measured.
    #[must_use]
    pub fn median(&self, case: &str, variant: &str, metric: &str) -> Option<f64> {
        self.rows.iter().find(|row| row.is(case, variant, metric)).map(Row::median)
    }

    /// The table: a line for each figure.
    #[must_use]
    pub fn table(&self) -> Table {
        let mut table = Table::new(["case", "variant", "metric", "median", "min", "max", "unit"]);
        for row in &self.rows {
            let [median, min, max] = [row.median(), row.min(), row.max()].map(shown);
            let names = [&row.case, &row.variant, row.metric].map(str::to_owned);
            table.push(names.into_iter().chain([median, min, max, row.unit.to_owned()]));
        }
        table
    }

    /// Writes `target/bench/NAME.json`.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, name: &str) -> Result<()> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
        let file = dir.join(format!("{name}.json"));
        std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::write(&file, self.json()))
            .with_context(|| file.display().to_string())
    }

    fn json(&self) -> String {
        let rows = self.rows.iter().map(|row| {
            json!({
                "case": row.case,
                "variant": row.variant,
                "metric": row.metric,
                "unit": row.unit,
                "median": rounded(row.median()),
                "min": rounded(row.min()),
                "max": rounded(row.max()),
                "runs": row.runs.len(),
            })
        });
        format!("{:#}\n", serde_json::Value::from_iter(rows))
    }
}

impl Row {
    fn is(&self, case: &str, variant: &str, metric: &str) -> bool {
        self.case == case && self.variant == variant && self.metric == metric
    }

    /// The run in the middle; of an even number the mean of the two there.
    #[must_use]
    pub fn median(&self) -> f64 {
        let middle = self.runs.len() / 2;
        match self.runs.len() % 2 {
            0 => f64::midpoint(self.runs[middle - 1], self.runs[middle]),
            _ => self.runs[middle],
        }
    }

    /// The lowest run.
    #[must_use]
    pub fn min(&self) -> f64 {
        self.runs[0]
    }

    /// The highest run.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.runs[self.runs.len() - 1]
    }
}

/// Lines of cells under a head. What is a number is aligned to the right.
#[derive(Clone, Debug)]
pub struct Table {
    lines: Vec<Vec<String>>,
}

impl Table {
    /// With that head.
    pub fn new<C: Into<String>>(head: impl IntoIterator<Item = C>) -> Self {
        Self { lines: vec![head.into_iter().map(Into::into).collect()] }
    }

    /// Adds a line.
    pub fn push<C: Into<String>>(&mut self, line: impl IntoIterator<Item = C>) {
        self.lines.push(line.into_iter().map(Into::into).collect());
    }

    /// True if there is nothing under the head.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.len() < 2
    }

    /// For a terminal.
    #[must_use]
    pub fn plain(&self) -> String {
        let widths: Vec<usize> = (0..self.lines[0].len()).map(|c| self.width(c)).collect();
        let mut text = String::new();
        for line in &self.lines {
            let mut padded = String::new();
            for (column, cell) in line.iter().enumerate() {
                let width = widths[column];
                padded += &if self.is_numeric(column) {
                    format!("{cell:>width$}  ")
                } else {
                    format!("{cell:width$}  ")
                };
            }
            text += padded.trim_end();
            text.push('\n');
        }
        text
    }

    /// For a README.
    #[must_use]
    pub fn markdown(&self) -> String {
        let row = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule = |column| if self.is_numeric(column) { "---:" } else { "---" }.to_owned();
        let rules: Vec<String> = (0..self.lines[0].len()).map(rule).collect();
        let mut text = row(&self.lines[0]) + &row(&rules);
        text.extend(self.lines[1..].iter().map(|line| row(line)));
        text
    }

    fn width(&self, column: usize) -> usize {
        self.lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default()
    }

    fn is_numeric(&self, column: usize) -> bool {
        let number = |cell: &str| cell == "-" || cell.parse::<f64>().is_ok();
        !self.is_empty() && self.lines[1..].iter().all(|line| number(&line[column]))
    }
}

/// A value with as many digits as say something.
#[must_use]
pub fn shown(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 1000.0 => 0,
        v if v >= 20.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
