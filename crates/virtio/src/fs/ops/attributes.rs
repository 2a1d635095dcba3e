//! Attributes of files, and of the file system.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::fs::abi::{self, GETATTR_FH, setattr};
use crate::fs::handles::Handle;
use crate::fs::nodes::Node;
use crate::fs::server::{Reply, Request, Result, Server};

const NOW: i64 = libc::UTIME_NOW;
const OMIT: i64 = libc::UTIME_OMIT;
const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;

/// `struct fuse_setattr_in`
struct SetAttr {
    valid: u32,
    handle: u64,
    size: u64,
    times: [u64; 2],
    nanos: [u32; 2],
    mode: u32,
    uid: u32,
    gid: u32,
}

impl SetAttr {
    fn read(request: &mut Request<'_>) -> Result<Self> {
        let body = &mut request.body;
        let (valid, _) = (body.u32()?, body.u32()?);
        let (handle, size, _lock_owner) = (body.u64()?, body.u64()?, body.u64()?);
        let (atime, mtime, _ctime) = (body.u64()?, body.u64()?, body.u64()?);
        let (atime_nanos, mtime_nanos, _) = (body.u32()?, body.u32()?, body.u32()?);
        let (mode, _) = (body.u32()?, body.u32()?);
        let (uid, gid) = (body.u32()?, body.u32()?);
        let (times, nanos) = ([atime, mtime], [atime_nanos, mtime_nanos]);
        Ok(Self {
            valid,
            handle,
            size,
            times,
            nanos,
            mode,
            uid,
            gid,
        })
    }

    fn has(&self, bit: u32) -> bool {
        self.valid & bit != 0
    }

    fn time(&self, at: usize, set: u32, now: u32) -> Timespec {
        if self.has(now) {
            return Timespec {
                tv_sec: 0,
                tv_nsec: NOW,
            };
        }
        match (self.has(set), self.times.get(at), self.nanos.get(at)) {
            (true, Some(&secs), Some(&nanos)) => Timespec {
                tv_sec: secs as i64,
                tv_nsec: i64::from(nanos.min(999_999_999)),
            },
            _ => Timespec {
                tv_sec: 0,
                tv_nsec: OMIT,
            },
        }
    }
}

impl Server {
    pub(crate) fn getattr(&self, mut request: Request<'_>) -> Result<Reply> {
        let flags = request.body.u32()?;
        let _ = request.body.u32()?;
        let handle = request.body.u64()?;
        let stat = if flags & GETATTR_FH != 0 {
            self.stat(&self.handle(handle, &request)?.file)?
        } else {
            self.stat(&self.node(&request)?.fd)?
        };
        Ok(Reply::Data(abi::attr_out(&stat, self.cache.validity())))
    }

    pub(crate) fn setattr(&self, mut request: Request<'_>) -> Result<Reply> {
        self.check_writable()?;
        let set = SetAttr::read(&mut request)?;
        let node = self.node(&request)?;
        let handle = if set.has(setattr::FH) {
            Some(self.handle(set.handle, &request)?)
        } else {
            None
        };
        if set.has(setattr::MODE) {
            self.chmod(&node, set.mode & 0o7777)?;
        }
        if set.has(setattr::UID | setattr::GID) {
            self.chown(&node, &set)?;
        }
        if set.has(setattr::SIZE) {
            self.truncate(&node, handle.as_deref(), set.size)?;
        }
        if set.has(setattr::KILL_SUIDGID) {
            self.drop_set_ids(&node)?;
        }
        let times = [
            setattr::ATIME | setattr::ATIME_NOW,
            setattr::MTIME | setattr::MTIME_NOW,
        ];
        if set.has(times[0] | times[1]) {
            let times = Timestamps {
                last_access: set.time(0, setattr::ATIME, setattr::ATIME_NOW),
                last_modification: set.time(1, setattr::MTIME, setattr::MTIME_NOW),
            };
            self.set_times(&node, &times)?;
        }
        let stat = self.stat(&node.fd)?;
        Ok(Reply::Data(abi::attr_out(&stat, self.cache.validity())))
    }

    fn chown(&self, node: &Node, set: &SetAttr) -> Result<()> {
        let uid = set.has(setattr::UID).then_some(set.uid);
        let gid = set.has(setattr::GID).then_some(set.gid);
        let (uid, gid) = self.owners.change(uid, gid)?;
        if (uid, gid) == (None, None) {
            return Ok(());
        }
        self.set_owner(&node.fd, uid, gid)
    }

    pub(crate) fn set_owner(&self, fd: &OwnedFd, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let uid = uid
            .filter(|&uid| uid != u32::MAX)
            .map(rustix::fs::Uid::from_raw);
        let gid = gid
            .filter(|&gid| gid != u32::MAX)
            .map(rustix::fs::Gid::from_raw);
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(fd, c"", uid, gid, flags)
    }

    pub(crate) fn chmod(&self, node: &Node, mode: u32) -> Result<()> {
        if node.kind == FileType::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        // `/proc/self/fd/N` is a link that leads to the very file, whatever its path is by now.
        let mode = Mode::from_raw_mode(mode);
        rustix::fs::chmodat(
            &self.descriptors,
            self.name_of(&node.fd),
            mode,
            AtFlags::empty(),
        )
    }

    fn set_times(&self, node: &Node, times: &Timestamps) -> Result<()> {
        // The link's own times for a symlink: with this flag it would be those of the link in /proc.
        if node.kind == FileType::Symlink {
            let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
            return rustix::fs::utimensat(&node.fd, c"", times, flags);
        }
        rustix::fs::utimensat(
            &self.descriptors,
            self.name_of(&node.fd),
            times,
            AtFlags::empty(),
        )
    }

    fn truncate(&self, node: &Arc<Node>, handle: Option<&Handle>, size: u64) -> Result<()> {
        match handle {
            Some(handle) => rustix::fs::ftruncate(&handle.file, size),
            None => rustix::fs::ftruncate(self.open_node(node, OFlags::WRONLY)?, size),
        }
    }

    /// Takes set-user-id and set-group-id away, as writing does.
    pub(crate) fn drop_set_ids(&self, node: &Node) -> Result<()> {
        let mode = rustix::fs::statat(&node.fd, c"", AtFlags::EMPTY_PATH)?.st_mode;
        // Set-group-id without group execution is mandatory locking, and stays.
        let group = if mode & libc::S_IXGRP != 0 {
            libc::S_ISGID
        } else {
            0
        };
        let drop = mode & SET_ID & (libc::S_ISUID | group);
        if drop == 0 || node.kind != FileType::RegularFile {
            return Ok(());
        }
        self.chmod(node, mode & 0o7777 & !drop)
    }

    pub(crate) fn readlink(&self, request: Request<'_>) -> Result<Reply> {
        let node = self.node(&request)?;
        let target = rustix::fs::readlinkat(&node.fd, c"", Vec::new())?;
        Ok(Reply::Data(target.into_bytes()))
    }

    pub(crate) fn statfs(&self, request: Request<'_>) -> Result<Reply> {
        let node = self.node(&request)?;
        let stat = rustix::fs::fstatvfs(&node.fd)?;
        let mut out = Vec::with_capacity(80);
        for field in [
            stat.f_blocks,
            stat.f_bfree,
            stat.f_bavail,
            stat.f_files,
            stat.f_ffree,
        ] {
            out.extend(field.to_le_bytes());
        }
        for field in [stat.f_bsize, stat.f_namemax, stat.f_frsize] {
            out.extend((field as u32).to_le_bytes());
        }
        out.resize(80, 0);
        Ok(Reply::Data(out))
    }
}
