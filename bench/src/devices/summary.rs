//! The table at the end: medians, their spread, and how often Capsa's time goes into QEMU's.

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
    }

    /// The ratios of the rounds, whose two runs met the same load of this computer.
    fn ratios(&self) -> Spread {
        let rounds = self.qemu.iter().zip(&self.capsa);
        Spread::of(rounds.map(|(qemu, capsa)| qemu / capsa))
    }

    /// Median, and least and most.
    fn cells(&self, seconds: &Spread) -> String {
        let rate = |seconds| self.unit.rate(self.amount, seconds);
        format!(
            "{} | {} to {}",
            rate(seconds.median),
            rate(seconds.most),
            rate(seconds.least)
        )
    }
}

struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(numbers: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = numbers.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        Self {
            least: at(0),
            median: at(sorted.len() / 2),
            most: at(sorted.len().saturating_sub(1)),
        }
    }
}

pub(crate) fn print(samples: &[Samples]) {
    println!("| | capsa | from to | QEMU | from to | ratio | of each round |");
    println!("|---|---|---|---|---|---|---|");
    for sample in samples.iter().filter(|sample| !sample.capsa.is_empty()) {
        let capsa = Spread::of(sample.capsa.iter().copied());
        let qemu = Spread::of(sample.qemu.iter().copied());
        let ratios = sample.ratios();
        println!(
            "| {} | {} | {} | {:.2} | {:.2} ({:.2} to {:.2}) |",
            sample.name,
            sample.cells(&capsa),
            sample.cells(&qemu),
            qemu.median / capsa.median,
            ratios.median,
            ratios.least,
            ratios.most
        );
    }
}
