use std::io;
use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::Access;

/// The newest interface that this was written for. An older kernel knows less, and does that.
const NEWEST: ABI = ABI::V6;

/// Denies every access to files, but for those below `directories`; TCP; and signals and abstract
/// sockets to processes outside.
pub(super) fn restrict(directories: &[(BorrowedFd<'_>, Access)]) -> io::Result<()> {
    let status = apply(directories).map_err(io::Error::other)?;
    match status {
        RulesetStatus::NotEnforced => Err(io::Error::other(
            "the kernel has it not, or it is not in the list of `lsm=`",
        )),
        _ => Ok(()),
    }
}

fn apply(directories: &[(BorrowedFd<'_>, Access)]) -> Result<RulesetStatus, RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    for (directory, access) in directories {
        let allowed = match access {
            Access::Read => AccessFs::ReadFile | AccessFs::ReadDir,
            Access::Write => AccessFs::from_all(NEWEST) & !AccessFs::Execute,
        };
        rules = rules.add_rule(PathBeneath::new(directory, allowed))?;
    }
    // No new privileges is a layer of its own.
    Ok(rules.no_new_privs(false).restrict_self()?.ruleset)
}
