//! The port driven as a guest drives it, with the host's end of the socket in the test's hand.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::machine::panic_watch::PanicWatch;

const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const LINE_STATUS: u16 = 5;

#[derive(Default)]
struct Line {
    raised: AtomicUsize,
    changed: Condvar,
    lock: Mutex<()>,
}

impl Line {
    fn wait_for(&self, count: usize) {
        let mut guard = self.lock.lock().unwrap();
        while self.raised.load(Ordering::SeqCst) < count {
            guard = self.changed.wait(guard).unwrap();
        }
    }
}

impl InterruptLine for Line {
    fn trigger(&self) -> io::Result<()> {
        let _guard = self.lock.lock().unwrap();
        self.raised.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_all();
        Ok(())
    }
}

struct Port {
    serial: Arc<Serial>,
    line: Arc<Line>,
    host: UnixStream,
    panics: PanicWatch,
    _thread: SerialThread,
}

fn port() -> Port {
    let (host, guest) = UnixStream::pair().unwrap();
    let line = Arc::new(Line::default());
    let panics = PanicWatch::default();
    let serial = Arc::new(Serial::new(guest.into(), line.clone(), panics.stream()).unwrap());
    let thread = SerialThread::spawn(serial.clone(), || Ok(())).unwrap();
    Port {
        serial,
        line,
        host,
        panics,
        _thread: thread,
    }
}

fn read(serial: &Serial, offset: u16) -> u8 {
    let mut data = [0];
    serial.read(offset, &mut data);
    data[0]
}

#[test]
fn output_without_a_newline_reaches_the_host() {
    let mut port = port();

    for byte in b"login: " {
        port.serial.write(DATA, &[*byte]);
    }

    let mut got = [0; 7];
    port.host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"login: ");
}

#[test]
fn output_is_searched_for_a_panic() {
    let port = port();

    for byte in b"Kernel panic - not syncing: boom\r\n" {
        port.serial.write(DATA, &[*byte]);
    }

    assert_eq!(port.panics.message().as_deref(), Some("boom"));
}

#[test]
fn input_longer_than_the_receiver_arrives_whole_and_in_order() {
    let mut port = port();
    let sent: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
    port.serial.write(INTERRUPT_ENABLE, &[1]);

    port.host.write_all(&sent).unwrap();

    let mut got = Vec::new();
    let mut interrupts = 0;
    while got.len() < sent.len() {
        interrupts += 1;
        port.line.wait_for(interrupts);
        while read(&port.serial, LINE_STATUS) & 1 != 0 {
            got.push(read(&port.serial, DATA));
        }
    }
    assert_eq!(got, sent);
}

#[test]
fn input_sent_before_the_driver_starts_survives_its_start() {
    let mut port = port();
    port.host.write_all(b"early").unwrap();

    // What Linux does when the port is opened: clear the receiver, read it, enable interrupts.
    port.serial.write(2, &[0x07]);
    read(&port.serial, LINE_STATUS);
    read(&port.serial, DATA);
    port.serial.write(INTERRUPT_ENABLE, &[0x05]);

    port.line.wait_for(1);
    let got: Vec<u8> = (0..5).map(|_| read(&port.serial, DATA)).collect();
    assert_eq!(got, b"early");
}

#[test]
fn end_of_input_leaves_the_output_working() {
    let mut port = port();
    port.host.shutdown(std::net::Shutdown::Write).unwrap();

    port.serial.write(DATA, b"x");

    let mut got = [0];
    port.host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"x");
}

#[test]
fn host_that_does_not_read_makes_the_vcpu_wait_and_gets_every_byte_later() {
    let mut port = port();
    let control = Arc::new(Control::new().unwrap());
    control.run();
    let (serial, theirs) = (port.serial.clone(), control.clone());
    let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
    let expected = sent.clone();
    let vcpu = std::thread::spawn(move || {
        for byte in sent {
            serial.write(DATA, &[byte]);
            if serial.is_over_full() {
                serial.wait_for_room(&theirs);
            }
        }
    });

    // Read only once the vCPU is held up.
    while !port.serial.is_over_full() {
        std::thread::yield_now();
    }
    let mut got = vec![0; expected.len()];
    port.host.read_exact(&mut got).unwrap();

    vcpu.join().unwrap();
    assert!(got == expected);
}

#[test]
fn host_that_does_not_read_cannot_keep_the_machine_from_stopping() {
    let port = port();
    let control = Arc::new(Control::new().unwrap());
    let serial = port.serial.clone();
    control.on_change(move || serial.interrupt_waits());
    control.run();
    let (serial, theirs) = (port.serial.clone(), control.clone());
    let vcpu = std::thread::spawn(move || {
        while theirs.phase() == Phase::Running {
            serial.write(DATA, b"x");
            if serial.is_over_full() {
                serial.wait_for_room(&theirs);
            }
        }
    });
    while !port.serial.is_over_full() {
        std::thread::yield_now();
    }

    control.stop();

    vcpu.join().unwrap();
    let held = port.serial.lock().output.len();
    assert!(held <= OUTPUT_LIMIT + 1, "{held}");
}

#[test]
fn host_that_is_gone_does_not_hold_the_guest_up() {
    let Port {
        serial,
        host,
        _thread,
        ..
    } = port();
    drop(host);

    for _ in 0..10 * OUTPUT_LIMIT {
        serial.write(DATA, b"x\n");
    }

    assert!(!serial.is_over_full());
    assert!(serial.lock().output.is_empty());
}
