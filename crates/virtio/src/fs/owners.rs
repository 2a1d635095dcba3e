//! Owners on the two sides.

use rustix::fs::Stat;
use rustix::io::Errno;

use super::config::Owners;

const NOBODY: u32 = 65_534;

/// The mapping, with the user that runs this program.
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnerMap {
    rule: Owners,
    uid: u32,
    gid: u32,
}

impl OwnerMap {
    pub(super) fn new(rule: Owners) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        Self { rule, uid, gid }
    }

    /// The owners as the guest sees them.
    pub(super) fn show(&self, stat: &mut Stat) {
        match self.rule {
            Owners::Mapped => {
                stat.st_uid = if stat.st_uid == self.uid { 0 } else { NOBODY };
                stat.st_gid = if stat.st_gid == self.gid { 0 } else { NOBODY };
            }
            Owners::Squash { uid, gid } => (stat.st_uid, stat.st_gid) = (uid, gid),
            Owners::Passthrough => {}
        }
    }

    /// What a change of owners by the guest means on the host: `None` is nothing to do.
    pub(super) fn change(&self, uid: Option<u32>, gid: Option<u32>) -> Result<Change, Errno> {
        match self.rule {
            Owners::Mapped if uid.unwrap_or(0) != 0 || gid.unwrap_or(0) != 0 => Err(Errno::PERM),
            Owners::Mapped => Ok((uid.map(|_| self.uid), gid.map(|_| self.gid))),
            Owners::Squash { .. } => Ok((None, None)),
            Owners::Passthrough => Ok((uid, gid)),
        }
    }

    /// Who owns what user `uid` of the guest makes, if that is not who runs this program.
    pub(super) fn creator(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        match self.rule {
            Owners::Passthrough if (uid, gid) != (self.uid, self.gid) => Some((uid, gid)),
            _ => None,
        }
    }

    /// Whether the guest may make device nodes, and use attributes that have a meaning for the host.
    pub(super) fn is_privileged(&self) -> bool {
        self.rule == Owners::Passthrough
    }
}

/// User and group to set; `None` leaves it.
pub(super) type Change = (Option<u32>, Option<u32>);
