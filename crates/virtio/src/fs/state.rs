//! What is kept of a share across a suspend: which numbers name which files, by their paths below the directory.

use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};

use super::server::Server;

/// Version of [`FsState`].
pub(super) const VERSION: u32 = 1;

/// A share at rest. Files that had no name any more are not in it: their numbers name nothing afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FsState {
    /// The next number for a file.
    pub next_node: u64,
    /// Whether the guest keeps writes back.
    pub writeback: bool,
    /// Files that the guest knows: number, path, how often it was told.
    pub nodes: Vec<(u64, Vec<u8>, u64)>,
    /// What it has open: number, file's number, flags.
    pub handles: Vec<(u64, u64, u32)>,
}

impl Server {
    pub(super) fn state(&self) -> FsState {
        let root = self
            .nodes
            .get(super::abi::ROOT)
            .ok()
            .and_then(|root| self.path_of(&root.fd));
        let mut nodes = Vec::new();
        for (node, told) in self.nodes.all() {
            if !self.is_linked(&node) {
                continue;
            }
            let path = self.path_of(&node.fd);
            if let (Some(path), Some(root)) = (path, &root)
                && let Some(below) = below(&path, root)
            {
                nodes.push((node.id, below.to_vec(), told));
            }
        }
        let open = self.handles.all().into_iter();
        FsState {
            next_node: self.nodes.next_id(),
            writeback: self.writeback.load(std::sync::atomic::Ordering::Relaxed),
            nodes,
            handles: open
                .map(|(n, handle)| (n, handle.node, handle.flags.bits()))
                .collect(),
        }
    }

    /// The path that a descriptor has at the moment.
    fn path_of(&self, fd: &std::os::fd::OwnedFd) -> Option<Vec<u8>> {
        let path = rustix::fs::readlinkat(&self.descriptors, self.name_of(fd), Vec::new());
        path.ok().map(std::ffi::CString::into_bytes)
    }

    pub(super) fn restore_state(&self, state: &FsState) {
        self.forget_all();
        self.nodes.set_next_id(state.next_node);
        self.writeback
            .store(state.writeback, std::sync::atomic::Ordering::Relaxed);
        let Ok(root) = self.nodes.get(super::abi::ROOT) else {
            return;
        };
        for (id, path, told) in &state.nodes {
            if *id <= super::abi::ROOT {
                continue;
            }
            // The state is data, too: its paths must not lead out either.
            let path = std::ffi::OsStr::from_bytes(path);
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let beneath =
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            let fd = rustix::fs::openat2(&root.fd, path, flags, Mode::empty(), beneath);
            let found = fd.and_then(|fd| {
                let stat = rustix::fs::statat(&fd, c"", AtFlags::EMPTY_PATH)?;
                Ok((fd, stat))
            });
            if let Ok((fd, stat)) = found {
                self.nodes.restore(*id, fd, &stat, *told);
            }
        }
        for &(number, node, flags) in &state.handles {
            let flags = OFlags::from_bits_retain(flags).difference(OFlags::TRUNC);
            if let Ok(node) = self.nodes.get(node)
                && let Ok(file) = self.open_node(&node, flags)
            {
                self.handles.restore(number, node.id, file, flags);
            }
        }
    }
}

/// The part of `path` below `root`.
fn below<'p>(path: &'p [u8], root: &[u8]) -> Option<&'p [u8]> {
    match root {
        b"/" => path.strip_prefix(b"/"),
        root => path.strip_prefix(root)?.strip_prefix(b"/"),
    }
}
