//! The table at the end: medians, spread, and QEMU's time in Capsa's.

use crate::measures::{Measure, Unit};
use crate::peers::Side;

pub(crate) struct Samples {
    name: String,
    amount: u64,
    unit: Unit,
    capsa: Vec<f64>,
    qemu: Vec<f64>,
}

impl Samples {
    pub(crate) fn new(measure: &Measure) -> Self {
        Self {
            name: measure.name.clone(),
            amount: measure.amount,
            unit: measure.unit,
            capsa: Vec::new(),
            qemu: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, side: Side, seconds: f64) {
        let seconds_of_side = match side {
            Side::Capsa => &mut self.capsa,
            Side::Qemu => &mut self.qemu,
        };
        seconds_of_side.push(seconds);
        seconds_of_side.sort_by(f64::total_cmp);
    }

    /// Median, and least and most.
    fn cells(&self, seconds: &[f64]) -> String {
        let rate = |seconds: Option<&f64>| {
            seconds.map_or_else(String::new, |&s| self.unit.rate(self.amount, s))
        };
        format!(
            "{} | {} to {}",
            rate(Some(&median(seconds))),
            rate(seconds.last()),
            rate(seconds.first())
        )
    }
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) fn print(samples: &[Samples]) {
    println!("| | capsa | from to | QEMU | from to | ratio |");
    println!("|---|---|---|---|---|---|");
    for sample in samples.iter().filter(|sample| !sample.capsa.is_empty()) {
        println!(
            "| {} | {} | {} | {:.2} |",
            sample.name,
            sample.cells(&sample.capsa),
            sample.cells(&sample.qemu),
            median(&sample.qemu) / median(&sample.capsa)
        );
    }
}
