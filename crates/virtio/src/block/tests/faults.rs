//! A host that fails.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::guest_io::GuestIoVec;

/// A disk in memory that fails where it is told to, and forgets what was not flushed when it is cut off.
#[derive(Default)]
struct Faulty {
    volatile: Mutex<Vec<u8>>,
    durable: Mutex<Vec<u8>>,
    fail_writes: AtomicU32,
    fail_flushes: AtomicU32,
    error: i32,
}

impl Faulty {
    fn new(error: i32) -> Arc<Self> {
        let content = || Mutex::new(vec![0; 1 << 20]);
        Arc::new(Self {
            volatile: content(),
            durable: content(),
            error,
            ..Self::default()
        })
    }

    fn failing(&self, counter: &AtomicU32) -> io::Result<()> {
        let left = counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if left.is_ok() {
            Err(io::Error::from_raw_os_error(self.error))
        } else {
            Ok(())
        }
    }
}

impl Backend for Faulty {
    fn size(&self) -> u64 {
        1 << 20
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read(&self, buffers: GuestIoVec<'_>, offset: u64) -> io::Result<()> {
        let content = self.volatile.lock().unwrap();
        let mut at = offset as usize;
        for slice in buffers.slices() {
            slice.copy_from(&content[at..at + slice.len()]);
            at += slice.len();
        }
        Ok(())
    }
    fn write(&self, buffers: GuestIoVec<'_>, offset: u64) -> io::Result<()> {
        self.failing(&self.fail_writes)?;
        let mut content = self.volatile.lock().unwrap();
        let mut at = offset as usize;
        for slice in buffers.slices() {
            let end = at + slice.len();
            slice.copy_to(&mut content[at..end]);
            at = end;
        }
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        self.failing(&self.fail_flushes)?;
        *self.durable.lock().unwrap() = self.volatile.lock().unwrap().clone();
        Ok(())
    }
    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(self.error))
    }
    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: bool) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(self.error))
    }
    fn refresh_size(&self) -> io::Result<u64> {
        Ok(1 << 20)
    }
    fn grow(&self, _size: u64) -> Result<(), GrowError> {
        Err(io::Error::from_raw_os_error(self.error).into())
    }
}

#[test]
fn host_error_fails_its_request_only() {
    for error in [libc::EIO, libc::ENOSPC] {
        let backend = Faulty::new(error);
        let mut disk = Disk::new(backend.clone(), BlockOptions::default());
        backend.fail_writes.store(1, Ordering::SeqCst);
        assert_eq!(disk.write(0, &[1; 512]), IOERR);
        assert_eq!(disk.write(0, &[2; 512]), OK);
        assert_eq!(disk.read(0, 512).1, [2; 512]);
        assert_eq!(disk.ranges(T_DISCARD, &[range(0, 8, 0)]), IOERR);
        assert_eq!(disk.ranges(T_WRITE_ZEROES, &[range(0, 8, 0)]), IOERR);
        assert_eq!(disk.harness.interrupt.reset_requests(), 0);
        assert_eq!(disk.handle.metrics().failures(), 3);
    }
}

#[test]
fn flush_that_fails_is_told_and_flush_that_succeeds_is_durable() {
    let backend = Faulty::new(libc::EIO);
    let mut disk = Disk::new(backend.clone(), BlockOptions::default());
    assert_eq!(disk.write(0, &[1; 512]), OK);
    backend.fail_flushes.store(1, Ordering::SeqCst);
    assert_eq!(disk.flush(), IOERR);
    assert_eq!(backend.durable.lock().unwrap()[0], 0);
    assert_eq!(disk.flush(), OK);
    assert_eq!(backend.durable.lock().unwrap()[..512], [1; 512]);
    assert_eq!(disk.write(0, &[2; 512]), OK);
    assert_eq!(backend.durable.lock().unwrap()[..512], [1; 512]);
}

#[test]
fn write_without_the_flush_feature_fails_with_its_flush() {
    let backend = Faulty::new(libc::EIO);
    let (block, handle) = Block::new(backend.clone(), BlockOptions::default()).unwrap();
    let harness = Harness::new(block).with_features(0);
    harness.activate().unwrap();
    let mut disk = Disk { harness, handle };
    backend.fail_flushes.store(1, Ordering::SeqCst);
    assert_eq!(disk.write(0, &[1; 512]), IOERR);
    assert_eq!(disk.write(0, &[2; 512]), OK);
    assert_eq!(backend.durable.lock().unwrap()[..512], [2; 512]);
}

#[test]
fn thread_that_cannot_be_confined_touches_no_file() {
    let hook: engine::ThreadHook =
        Arc::new(|| Err(io::Error::from(io::ErrorKind::PermissionDenied)));
    let backend = RawDisk::new(file_of(&pattern(1 << 20, 1)), false).unwrap();
    let options = BlockOptions {
        engine: EngineKind::Threads,
        thread_hook: Some(hook),
        ..BlockOptions::default()
    };
    let mut disk = Disk::new(Arc::new(backend), options);
    assert_eq!(disk.read(0, 512).0, IOERR);
}
