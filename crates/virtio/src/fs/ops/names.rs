//! Finding, making, renaming and removing entries.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use crate::fs::abi;
use crate::fs::nodes::Node;
use crate::fs::server::{Reply, Request, Result, Server};

impl Server {
    pub(crate) fn lookup(&self, mut request: Request<'_>) -> Result<Reply> {
        let name = request.body.name()?;
        let parent = self.node(&request)?;
        self.entry(&parent, name)
    }

    /// The reply that tells the guest of an entry.
    fn entry(&self, parent: &Node, name: &CStr) -> Result<Reply> {
        let (id, stat) = self.find(parent, name)?;
        let mut out = Vec::with_capacity(128);
        abi::entry(&mut out, id, &stat, self.cache.validity());
        Ok(Reply::Data(out))
    }

    /// Goes one step down, without following a link, and counts that the guest gets to know.
    pub(crate) fn find(&self, parent: &Node, name: &CStr) -> Result<(u64, Stat)> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent.fd, name, flags, Mode::empty())?;
        self.know(fd)
    }

    /// Gives the file of an `O_PATH` descriptor a number.
    pub(crate) fn know(&self, fd: OwnedFd) -> Result<(u64, Stat)> {
        let mut stat = rustix::fs::statat(&fd, c"", AtFlags::EMPTY_PATH)?;
        let node = self.nodes.found(fd, &stat)?;
        self.show(&mut stat);
        Ok((node.id, stat))
    }

    /// After something was made: gives it mode and owner as the guest asked, and tells the guest.
    fn made(
        &self,
        request: &Request<'_>,
        parent: &Node,
        name: &CStr,
        mode: Option<u32>,
    ) -> Result<Reply> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent.fd, name, flags, Mode::empty())?;
        self.finish(request, parent, &fd, mode)?;
        let (id, stat) = self.know(fd)?;
        let mut out = Vec::with_capacity(128);
        abi::entry(&mut out, id, &stat, self.cache.validity());
        Ok(Reply::Data(out))
    }

    /// Sets what creating a file on the host could not: its owner, and bits that this process's umask took away.
    pub(crate) fn finish(
        &self,
        request: &Request<'_>,
        parent: &Node,
        fd: &OwnedFd,
        mode: Option<u32>,
    ) -> Result<()> {
        if let Some((uid, gid)) = self.owners.creator(request.header.uid, request.header.gid) {
            // In a set-group-id directory the group comes from there.
            let mode = rustix::fs::statat(&parent.fd, c"", AtFlags::EMPTY_PATH)?.st_mode;
            let gid = (mode & libc::S_ISGID == 0).then_some(gid);
            self.set_owner(fd, Some(uid), gid)?;
        }
        if let Some(mode) = mode {
            let stat = rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH)?;
            // A directory takes set-group-id from its parent.
            let inherited = stat.st_mode & libc::S_ISGID;
            let wanted = mode & 0o7777 | inherited;
            if stat.st_mode & 0o7777 != wanted
                && FileType::from_raw_mode(stat.st_mode) != FileType::Symlink
            {
                let mode = Mode::from_raw_mode(wanted);
                let name = self.name_of(fd);
                rustix::fs::chmodat(&self.descriptors, name, mode, AtFlags::empty())?;
            }
        }
        Ok(())
    }

    pub(crate) fn mkdir(&self, mut request: Request<'_>) -> Result<Reply> {
        self.check_writable()?;
        let (mode, _umask) = (request.body.u32()?, request.body.u32()?);
        let name = request.body.name()?;
        let parent = self.node(&request)?;
        rustix::fs::mkdirat(&parent.fd, name, Mode::from_raw_mode(mode & 0o7777))?;
        self.made(&request, &parent, name, Some(mode))
    }

    pub(crate) fn mknod(&self, mut request: Request<'_>) -> Result<Reply> {
        self.check_writable()?;
        let (mode, device) = (request.body.u32()?, request.body.u32()?);
        let (_umask, _) = (request.body.u32()?, request.body.u32()?);
        let name = request.body.name()?;
        let parent = self.node(&request)?;
        let kind = FileType::from_raw_mode(mode);
        match kind {
            FileType::RegularFile | FileType::Fifo | FileType::Socket => {}
            FileType::CharacterDevice | FileType::BlockDevice if self.owners.is_privileged() => {}
            FileType::CharacterDevice | FileType::BlockDevice => return Err(Errno::PERM),
            _ => return Err(Errno::INVAL),
        }
        let permissions = Mode::from_raw_mode(mode & 0o7777);
        let device = abi::device_from_number(device);
        rustix::fs::mknodat(&parent.fd, name, kind, permissions, device)?;
        self.made(&request, &parent, name, Some(mode))
    }

    pub(crate) fn symlink(&self, mut request: Request<'_>) -> Result<Reply> {
        self.check_writable()?;
        let name = request.body.name()?;
        // Anything: it is the guest that follows it, never the host.
        let target = request.body.string()?;
        let parent = self.node(&request)?;
        rustix::fs::symlinkat(target, &parent.fd, name)?;
        self.made(&request, &parent, name, None)
    }

    pub(crate) fn link(&self, mut request: Request<'_>) -> Result<Reply> {
        self.check_writable()?;
        let old = self.nodes.get(request.body.u64()?)?;
        let name = request.body.name()?;
        let parent = self.node(&request)?;
        if old.kind == FileType::Directory {
            return Err(Errno::PERM);
        }
        let from = self.name_of(&old.fd);
        let flags = AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(&self.descriptors, from, &parent.fd, name, flags)?;
        self.entry(&parent, name)
    }

    pub(crate) fn unlink(&self, mut request: Request<'_>, flags: AtFlags) -> Result<Reply> {
        self.check_writable()?;
        let name = request.body.name()?;
        let parent = self.node(&request)?;
        rustix::fs::unlinkat(&parent.fd, name, flags)?;
        Ok(Reply::Data(Vec::new()))
    }

    pub(crate) fn rename(&self, mut request: Request<'_>, with_flags: bool) -> Result<Reply> {
        self.check_writable()?;
        let to = request.body.u64()?;
        let mut flags = RenameFlags::empty();
        if with_flags {
            let bits = request.body.u32()?;
            let _ = request.body.u32()?;
            flags = RenameFlags::from_bits(bits).ok_or(Errno::INVAL)?;
            if flags.contains(RenameFlags::WHITEOUT) {
                return Err(Errno::INVAL);
            }
        }
        let (old, new) = (request.body.name()?, request.body.name()?);
        let (from, to) = (self.node(&request)?, self.nodes.get(to)?);
        rustix::fs::renameat_with(&from.fd, old, &to.fd, new, flags)?;
        Ok(Reply::Data(Vec::new()))
    }
}
