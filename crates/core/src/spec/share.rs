//! Shared directories of a VM.

use std::borrow::Cow;
use std::path::{Component, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The longest tag of a share, in bytes.
pub const MAX_SHARE_TAG: usize = 36;

/// A directory of the host that the guest sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareSpec {
    /// The directory on the host.
    pub host_path: PathBuf,
    /// Where the guest mounts it.
    pub guest_path: PathBuf,
    /// The virtio-fs tag; `None` for one made from its position (`share0`, `share1`, …).
    pub tag: Option<String>,
    /// What the guest may do.
    pub access: ShareAccess,
    /// Whose files the guest's users make and see.
    pub owners: OwnerMapping,
    /// How long the guest may trust what it has seen.
    pub cache: CachePolicy,
    /// What the guest does not get to see.
    #[serde(default)]
    pub filter: ShareFilter,
}

impl ShareSpec {
    /// A directory that the guest can read.
    pub fn new(host_path: impl Into<PathBuf>, guest_path: impl Into<PathBuf>) -> Self {
        Self {
            host_path: host_path.into(),
            guest_path: guest_path.into(),
            tag: None,
            access: ShareAccess::default(),
            owners: OwnerMapping::default(),
            cache: CachePolicy::default(),
            filter: ShareFilter::default(),
        }
    }

    /// The virtio-fs tag of the share that is number `index` in its VM: the one it names, or
    /// `share0`, `share1`, ….
    pub fn tag_at(&self, index: usize) -> Cow<'_, str> {
        match &self.tag {
            Some(tag) => tag.into(),
            None => format!("share{index}").into(),
        }
    }

    /// Checks what every backend asks for, without looking at the host.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`].
    pub fn check(&self, index: usize) -> Result<()> {
        let mut parts = self.guest_path.components();
        let absolute = parts.next() == Some(Component::RootDir);
        let named = parts.clone().next().is_some();
        if !absolute || !named || parts.any(|part| !matches!(part, Component::Normal(_))) {
            return Err(Error::invalid_setting(
                "share",
                self.guest_path.display(),
                "the guest path is not an absolute path below /, without ..",
                "write one such as /mnt/work",
            ));
        }
        let tag = self.tag_at(index);
        if tag.is_empty() || tag.len() > MAX_SHARE_TAG || !tag.bytes().all(|b| b.is_ascii_graphic())
        {
            return Err(Error::invalid_setting(
                "share tag",
                tag,
                format!("a tag is 1 to {MAX_SHARE_TAG} visible ASCII characters"),
                "use a short name, or none",
            ));
        }
        Ok(())
    }
}

/// What of a share is not there for the guest. By default nothing is hidden.
///
/// It is the host that hides it: no user of the guest gets at it, root neither. Names may still be
/// listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareFilter {
    /// Only what every user of the host may read is there: files with the `r` of others, directories
    /// with their `x`; no sockets, pipes and devices.
    pub public_only: bool,
    /// Files and directories of the host that are not there, with all that is below them. Those
    /// that do not exist at the start are passed over.
    pub hidden: Vec<PathBuf>,
}

impl ShareFilter {
    /// Whether anything is hidden.
    pub fn is_on(&self) -> bool {
        self.public_only || !self.hidden.is_empty()
    }
}

/// What a guest may do to a share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShareAccess {
    /// Nothing in it can be changed.
    #[default]
    ReadOnly,
    /// Everything in it can be changed.
    ReadWrite,
}

/// How owners in a share are mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OwnerMapping {
    /// The guest's root is the calling user.
    #[default]
    Mapped,
    /// Every user of the guest is the calling user.
    Squash,
    /// Numbers are the same on both sides; needs privileges on the host.
    Passthrough,
}

/// How long a guest may trust what it has seen of a share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CachePolicy {
    /// Ask each time.
    None,
    /// One second.
    #[default]
    Auto,
    /// For ever: nobody else changes the directory.
    Always,
}
