//! A stand-in for vfkit: the same command line, log, requests, terminal and sockets, with a guest that
//! answers lines instead of a virtual machine. It fails in the way that the word `stand-in=…` of the
//! kernel command line names.

// UNSAFETY: the network's descriptor is known by its number only.
#![allow(unsafe_code)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use support::{Device, Parsed};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["--version"] {
        println!("vfkit version: v0.6.1");
        return ExitCode::SUCCESS;
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log("error", &error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// A line as vfkit's logger writes it.
fn log(level: &str, message: &str) {
    eprintln!("time=\"2026-11-23T00:00:00Z\" level={level} msg={message:?}");
}

fn run(arguments: &[String]) -> Result<(), Failure> {
    let parsed = support::parse(arguments)?;
    let behaviour = (parsed.command_line.split_whitespace())
        .find_map(|word| word.strip_prefix("stand-in="))
        .unwrap_or_default()
        .to_owned();
    if behaviour == "refuse" {
        return Err("Error Domain=VZErrorDomain Code=2 \"Invalid virtual machine\"".into());
    }
    check(&parsed)?;
    log("info", "virtual machine parameters:");
    if behaviour == "die-at-once" {
        std::process::abort();
    }
    if behaviour == "hang" {
        log("info", "about to hang");
        loop {
            thread::park();
        }
    }
    let machine = Machine::new(&parsed, behaviour.clone())?;
    for device in &parsed.devices {
        machine.attach(device)?;
    }
    if let Some(socket) = &parsed.rest_socket {
        let listener = UnixListener::bind(socket)?;
        let machine = machine.clone();
        thread::spawn(move || serve(&listener, &machine));
    }
    log("info", "virtual machine is running");
    for device in parsed
        .devices
        .iter()
        .filter(|device| device.kind == "virtio-vsock")
    {
        log(
            "info",
            &format!("Exposing vsock port {}", device.get("port")),
        );
        machine.expose(device)?;
    }
    log("info", "waiting for VM to stop");
    if behaviour == "die-later" {
        machine.write(b"the guest is up\n");
        log("error", "virtualization error: something broke");
        return Err("it died later".into());
    }
    machine.guest()?;
    log("info", "VM is stopped");
    Ok(())
}

fn check(parsed: &Parsed) -> Result<(), Failure> {
    if parsed.variable_store.is_none() {
        fs::metadata(&parsed.kernel)?;
        if parsed.initrd.is_empty() {
            return Err("missing initrd path".into());
        }
        fs::metadata(&parsed.initrd)?;
    }
    for device in &parsed.devices {
        match device.kind.as_str() {
            "virtio-blk" => support::check_disk(Path::new(device.get("path")))?,
            "virtio-fs" if !Path::new(device.get("sharedDir")).is_dir() => {
                return Err("sharedDir is not a directory".into());
            }
            _ => {}
        }
    }
    Ok(())
}

struct Machine {
    state: Mutex<&'static str>,
    behaviour: String,
    terminal: Option<Terminal>,
    network: Mutex<Option<UnixDatagram>>,
    listen: Mutex<HashMap<String, String>>,
}

impl Machine {
    fn new(parsed: &Parsed, behaviour: String) -> Result<Arc<Self>, Failure> {
        if let Some(store) = parsed
            .variable_store
            .as_ref()
            .filter(|_| parsed.create_store)
        {
            fs::write(store, b"variables")?;
        }
        let wants_terminal = (parsed.devices.iter())
            .any(|device| device.kind == "virtio-serial" && device.has("pty"));
        Ok(Arc::new(Self {
            state: Mutex::new("Running"),
            behaviour,
            terminal: wants_terminal.then(make_terminal).transpose()?,
            network: Mutex::new(None),
            listen: Mutex::new(HashMap::new()),
        }))
    }

    fn attach(&self, device: &Device) -> Result<(), Failure> {
        if device.kind == "virtio-net" {
            let number = device.get("fd").parse()?;
            // SAFETY: the caller handed this descriptor over under this number, and nothing else in
            // this program has it.
            let socket = unsafe { OwnedFd::from_raw_fd(number) };
            *lock(&self.network) = Some(UnixDatagram::from(socket));
        }
        Ok(())
    }

    /// Makes the host's socket of a vsock port; in the guest, an echo listens on each port.
    fn expose(self: &Arc<Self>, device: &Device) -> Result<(), Failure> {
        let socket = device.get("socketURL").to_owned();
        if device.has("listen") {
            lock(&self.listen).insert(device.get("port").to_owned(), socket);
            return Ok(());
        }
        let listener = UnixListener::bind(socket)?;
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut copy = stream.try_clone()?;
                    io::copy(&mut copy, &mut stream)?;
                    stream.shutdown(std::net::Shutdown::Write)
                });
            }
        });
        Ok(())
    }

    fn write(&self, bytes: &[u8]) {
        if let Some(terminal) = &self.terminal {
            let _gone = rustix::io::write(&terminal.master, bytes);
        }
    }

    /// What the guest does with what is typed, line by line, until it powers off. Its last words wait
    /// for one more line: a terminal that is closed loses what nobody has read yet.
    fn guest(&self) -> Result<(), Failure> {
        self.write(b"login: ");
        let Some(terminal) = &self.terminal else {
            loop {
                thread::park();
            }
        };
        let mut lines = BufReader::new(File::from(terminal.master.try_clone()?)).lines();
        while let Some(Ok(line)) = lines.next() {
            let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
            match word {
                "poweroff" => {
                    self.write(b"reboot: Power down\n");
                    lines.next();
                    return Ok(());
                }
                "panic" => {
                    self.write(b"Kernel panic - not syncing: as you wish\n");
                    lines.next();
                    return Ok(());
                }
                "fail" => return Err("virtualization error: the guest asked for it".into()),
                "fill" => self.write(&vec![b'x'; rest.parse()?]),
                "frame" => self.exchange_frame(rest)?,
                "bridge" => self.bridge(rest)?,
                "dial" => self.dial(rest)?,
                _ => self.write(format!("echo: {line}\n").as_bytes()),
            }
        }
        Ok(())
    }

    /// Sends a frame, given in hexadecimal, and shows the next one that comes.
    fn exchange_frame(&self, hexadecimal: &str) -> Result<(), Failure> {
        let digits: Vec<char> = hexadecimal.chars().collect();
        let frame: Vec<u8> = (digits.chunks(2))
            .map(|pair| u8::from_str_radix(&String::from_iter(pair), 16))
            .collect::<Result<_, _>>()?;
        let network = lock(&self.network);
        let network = network.as_ref().ok_or("no network")?;
        network.send(&frame)?;
        let mut answer = vec![0; 65536];
        let length = network.recv(&mut answer)?;
        let shown: String = answer[..length]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.write(format!("frame: {shown}\n").as_bytes());
        Ok(())
    }

    /// Has the guest's network stack outside: from now on carries frames between the interface and the
    /// datagram socket at `path`, whose owner finds the way back at `path.guest`.
    fn bridge(&self, path: &str) -> Result<(), Failure> {
        let interface = lock(&self.network).take().ok_or("no network")?;
        let stack = UnixDatagram::bind(format!("{path}.guest"))?;
        stack.connect(path)?;
        for (from, to) in [(&interface, &stack), (&stack, &interface)] {
            let (from, to) = (from.try_clone()?, to.try_clone()?);
            thread::spawn(move || {
                let mut frame = vec![0; 65536];
                while let Ok(length) = from.recv(&mut frame) {
                    // A wire may lose a frame.
                    let _lost = to.send(&frame[..length]);
                }
            });
        }
        self.write(b"bridged\n");
        Ok(())
    }

    /// Connects to a vsock port of the host, says a word, and shows what comes back.
    fn dial(&self, port: &str) -> Result<(), Failure> {
        let socket = lock(&self.listen)
            .get(port)
            .cloned()
            .ok_or("no such port")?;
        let mut stream = UnixStream::connect(socket)?;
        stream.write_all(b"hello")?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        self.write(format!("host said: {answer}\n").as_bytes());
        Ok(())
    }

    /// Answers one request: status line and body.
    fn answer(&self, request: &str, body: &str) -> (&'static str, String) {
        let mut state = lock(&self.state);
        match (self.behaviour.as_str(), request) {
            ("refuse-changes", "POST /vm/state") => (
                "500 Internal Server Error",
                "{\"error\":\"invalid state transition\"}".to_owned(),
            ),
            (_, "GET /vm/state") => {
                let text = format!("{{\"state\":\"VirtualMachineState{state}\"}}");
                ("200 OK", text)
            }
            (_, "POST /vm/state") => {
                let wanted = ["Pause", "Resume", "Stop", "HardStop"]
                    .into_iter()
                    .find(|name| body.contains(&format!("\"state\":\"{name}\"")));
                match wanted {
                    Some("Pause") if self.behaviour != "ignore-pause" => *state = "Paused",
                    Some("Resume") => *state = "Running",
                    Some("Stop") if self.behaviour != "ignore-stop" => {
                        log("info", "VM is stopped");
                        std::process::exit(0);
                    }
                    Some(_) => {}
                    None => {
                        let error = "{\"error\":\"invalid new VMState\"}".to_owned();
                        return ("400 Bad Request", error);
                    }
                }
                ("202 Accepted", String::new())
            }
            _ => ("404 Not Found", String::new()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pseudo-terminal. The slave is held open, so that the guest's output waits for a reader instead of
/// failing.
struct Terminal {
    master: OwnedFd,
    _slave: File,
}

/// Makes a terminal and names it in the log, as vfkit does.
fn make_terminal() -> Result<Terminal, Failure> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?.into_string()?;
    let slave = File::options().read(true).write(true).open(&name)?;
    let mut attributes = tcgetattr(slave.as_fd())?;
    attributes.make_raw();
    tcsetattr(slave.as_fd(), OptionalActions::Now, &attributes)?;
    log("info", &format!("Using PTY (pty path: {name})"));
    Ok(Terminal {
        master,
        _slave: slave,
    })
}

fn serve(listener: &UnixListener, machine: &Arc<Machine>) {
    for stream in listener.incoming().flatten() {
        // A client that goes away is no failure.
        let _gone = serve_one(stream, machine);
    }
}

fn serve_one(mut stream: UnixStream, machine: &Machine) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let request = line.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let header = header.trim_end().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if machine.behaviour == "garbage" {
        return stream.write_all(b"\x00\x01 this is not what was asked for\r\n\r\n");
    }
    if machine.behaviour == "silent" {
        loop {
            thread::park();
        }
    }
    if machine.behaviour == "nonsense" {
        let text = "{\"state\":42}";
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", text.len());
        return stream.write_all((head + text).as_bytes());
    }
    let (status, text) = machine.answer(&request, &String::from_utf8_lossy(&body));
    let length = text.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}"
    )
}
