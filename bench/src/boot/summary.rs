//! The table at the end: medians, spread, and the ratio to QEMU.

use crate::monitor::Run;

pub(crate) struct Samples {
    name: &'static str,
    seconds: Vec<f64>,
    monitor_kib: Vec<u64>,
}

impl Samples {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            seconds: Vec::new(),
            monitor_kib: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, run: Run) {
        self.seconds.push(run.seconds);
        self.monitor_kib.push(run.monitor_kib);
        self.seconds.sort_by(f64::total_cmp);
        self.monitor_kib.sort_unstable();
    }

    fn median(&self) -> f64 {
        self.seconds
            .get(self.seconds.len() / 2)
            .copied()
            .unwrap_or(f64::NAN)
    }
}

pub(crate) fn print(samples: &[Samples]) {
    let peer = samples
        .iter()
        .find(|s| s.name.starts_with("qemu"))
        .map_or(f64::NAN, Samples::median);
    println!("| monitor | median | min to max | of QEMU's | memory besides guest memory |");
    println!("|---|---|---|---|---|");
    for sample in samples {
        let memory = sample
            .monitor_kib
            .get(sample.monitor_kib.len() / 2)
            .copied()
            .unwrap_or(0);
        println!(
            "| {} | {:.2} s | {:.2} to {:.2} | {:.2} | {:.1} MiB |",
            sample.name,
            sample.median(),
            sample.seconds.first().copied().unwrap_or(f64::NAN),
            sample.seconds.last().copied().unwrap_or(f64::NAN),
            sample.median() / peer,
            memory as f64 / 1024.0,
        );
    }
}
