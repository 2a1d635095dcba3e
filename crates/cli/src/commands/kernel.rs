use std::path::{Path, PathBuf};

use capsa_guest::discover::SearchPath;
use capsa_guest::store::{KernelStore, StoredKernel};
use clap::{Args, Subcommand};

use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output;

#[derive(Args)]
pub(crate) struct KernelArguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the kernels that `capsa run --kernel NAME` knows
    List,
    /// Take over a kernel: any bzImage or vmlinux, a distribution's included
    Import {
        /// The file
        file: PathBuf,
        /// What to call it; the name of the file by default
        #[arg(long)]
        name: Option<String>,
    },
    /// Remove a kernel from the user's store
    Remove {
        /// Its name
        name: String,
    },
}

pub(crate) fn run(arguments: KernelArguments) -> Result<ExitStatus, Failure> {
    match arguments.action {
        Action::List => list()?,
        Action::Import { file, name } => import(&file, name)?,
        Action::Remove { name } => {
            KernelStore::user()?.remove(&name)?;
        }
    }
    Ok(ExitStatus::Success)
}

fn list() -> Result<(), Failure> {
    let mut lines = Vec::new();
    for store in SearchPath::from_environment().stores() {
        lines.extend(store.list()?.iter().map(describe));
    }
    if lines.is_empty() {
        output::to_stderr(
            "there is no kernel; `capsa kernel build` makes the default one, \
             `capsa kernel import FILE` takes over another",
        );
        return Ok(());
    }
    output::to_stdout(&lines.join("\n"))
}

fn import(file: &Path, name: Option<String>) -> Result<(), Failure> {
    let name = name.unwrap_or_else(|| {
        file.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    });
    let kernel = KernelStore::user()?.import(file, &name)?;
    output::to_stdout(&describe(&kernel))
}

fn describe(kernel: &StoredKernel) -> String {
    let version = kernel
        .record
        .as_ref()
        .and_then(|record| record.version.as_deref())
        .unwrap_or("version unknown");
    format!("{}\t{version}\t{}", kernel.name, kernel.path.display())
}
