//! `cargo xtask test`: builds all tests and runs each where it can run. `docs/testing.md` has the conventions.

mod doctor;
mod lab;
mod lane;
mod programs;
mod report;
mod series;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

pub(crate) use doctor::kvm_is_usable;
pub(crate) use lab::run_series_inside;
use lane::{Lane, Place};
use programs::{Backend, Program};
use report::Tally;

use crate::{setup, workspace};

/// The same for each Cargo command, so that nothing is built twice.
pub(crate) const FEATURES: &str = "capsa/linux-kvm,capsa/qemu,capsa/test-utils";

#[derive(Args)]
pub(crate) struct TestArguments {
    /// Run only these (repeatable) [default: all]
    #[arg(long, value_name = "KIND")]
    only: Vec<Kind>,
    /// Run only the test programs whose label contains this: `capsa-core`, `boot [kvm]` (repeatable)
    #[arg(long, value_name = "LABEL")]
    program: Vec<String>,
    /// Run KVM's tests in the lab even where the host's KVM is usable
    #[arg(long)]
    lab: bool,
    /// Run only the tests whose name contains this
    name: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Tests that start no virtual machine
    Unit,
    /// Examples in the documentation
    Doc,
    /// Tests with machines on QEMU
    Qemu,
    /// Tests with machines on KVM
    Kvm,
}

pub(crate) fn run(arguments: &TestArguments) -> Result<ExitCode> {
    let began = Instant::now();
    let root = workspace::root()?;
    setup::for_tests()?;
    let built = programs::build(&root)?;
    let mut chosen = choose(built.programs, arguments, &root);
    give_stock_kernel(&mut chosen)?;
    if chosen.is_empty() {
        bail!("no test program fits what was asked for");
    }
    let (kvm, here): (Vec<Program>, Vec<Program>) = chosen
        .into_iter()
        .partition(|program| program.backend == Some(Backend::Kvm));
    let mut lanes = Vec::new();
    if !kvm.is_empty() {
        lanes.push(kvm_lane(kvm, arguments, &built.command_line)?);
    }
    lanes.push(Lane {
        name: "here",
        place: Place::Here,
        programs: here,
    });

    let results = lane::run_side_by_side(&lanes)?;

    println!("\nafter {} seconds:", began.elapsed().as_secs());
    let mut total = Tally::default();
    for (lane, result) in lanes.iter().zip(&results) {
        println!(
            "  {:<8} {} programs: {} passed, {} failed",
            lane.name,
            lane.programs.len(),
            result.tally.passed,
            result.tally.failed
        );
        total.add(&result.tally);
    }
    for test in &total.ignored {
        println!("  ignored: {test}");
    }
    for trouble in results.iter().flat_map(|result| &result.passed_again) {
        println!("  failed once, passed when run again:  {trouble}");
    }
    for trouble in results.iter().flat_map(|result| &result.troubles) {
        println!("  FAILED:  {trouble}");
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(if total.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Tells the tests with machines where a distribution's kernel is: the lab's own.
fn give_stock_kernel(programs: &mut [Program]) -> Result<()> {
    let image = setup::lab()?.image;
    for program in programs.iter_mut().filter(|p| p.backend.is_some()) {
        let image = image.to_string_lossy().into_owned();
        let variable = "CAPSA_TEST_STOCK_KERNEL".to_owned();
        program.environment.push((variable, image));
    }
    Ok(())
}

/// The programs that were asked for, the quick ones first.
fn choose(built: Vec<Program>, arguments: &TestArguments, root: &Path) -> Vec<Program> {
    let wanted = |kind| arguments.only.is_empty() || arguments.only.contains(&kind);
    let mut programs: Vec<Program> = built
        .into_iter()
        .filter(|program| {
            wanted(match program.backend {
                None => Kind::Unit,
                Some(Backend::Qemu) => Kind::Qemu,
                Some(Backend::Kvm) => Kind::Kvm,
            })
        })
        .collect();
    programs.sort_by_key(|program| program.backend);
    if wanted(Kind::Doc) {
        programs.push(documentation(root));
    }
    if !arguments.program.is_empty() {
        programs.retain(|program| {
            arguments
                .program
                .iter()
                .any(|part| program.label.contains(part))
        });
    }
    if let Some(name) = &arguments.name {
        for program in &mut programs {
            program.arguments.push(name.clone());
        }
    }
    programs
}

/// Cargo builds and runs the documentation's examples in one go.
fn documentation(root: &Path) -> Program {
    Program {
        label: "documentation".to_owned(),
        executable: PathBuf::from("cargo"),
        arguments: [
            "test",
            "--quiet",
            "--workspace",
            "--doc",
            "--features",
            FEATURES,
            "--",
        ]
        .map(str::to_owned)
        .to_vec(),
        directory: root.to_owned(),
        environment: Vec::new(),
        backend: None,
        limit_seconds: 1200,
    }
}

fn kvm_lane(
    programs: Vec<Program>,
    arguments: &TestArguments,
    command_line: &Path,
) -> Result<Lane> {
    let lab = |why: &str| -> Result<Lane> {
        println!("KVM's tests run in the lab: {why}");
        setup::lab()?;
        Ok(Lane {
            name: "kvm-lab",
            place: Place::Lab,
            programs: Vec::new(),
        })
    };
    let lane = if arguments.lab {
        lab("--lab was given")?
    } else {
        match doctor::kvm_is_usable(command_line)? {
            Ok(()) => {
                println!("KVM's tests run on this machine's own KVM");
                Lane {
                    name: "kvm",
                    place: Place::Here,
                    programs: Vec::new(),
                }
            }
            Err(why) => lab(&why)?,
        }
    };
    let mut programs = programs;
    if let Place::Lab = lane.place {
        // The lab has every layer of confinement, so that nothing there runs without one.
        for program in &mut programs {
            let required = ("CAPSA_TEST_ISOLATION".to_owned(), "required".to_owned());
            program.environment.push(required);
        }
    }
    Ok(Lane { programs, ..lane })
}
