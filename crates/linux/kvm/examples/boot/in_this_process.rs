//! What the example does, where there is KVM.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use capsa_linux_kvm::machine::{
    DeviceConfig, DeviceDiscovery, Machine, MachineConfig, MachineEnd, MachineFiles,
    default_command_line,
};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

struct Options {
    kernel: String,
    initrd: Option<String>,
    cpus: u32,
    memory: u64,
    serial: bool,
    hvc: bool,
    discovery: DeviceDiscovery,
    extra: String,
    raw: Option<String>,
    stats: bool,
    button: Option<f64>,
}

fn options() -> Fallible<Options> {
    let mut o = Options {
        kernel: String::new(),
        initrd: None,
        cpus: 1,
        memory: 128,
        serial: false,
        hvc: true,
        discovery: DeviceDiscovery::Auto,
        extra: String::new(),
        raw: None,
        stats: false,
        button: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let mut value = || args.next().ok_or(format!("{name} needs a value"));
        match name.as_str() {
            "--kernel" => o.kernel = value()?,
            "--initrd" => o.initrd = Some(value()?),
            "--cpus" => o.cpus = value()?.parse()?,
            "--memory" => o.memory = value()?.parse()?,
            "--serial" => o.serial = true,
            "--no-hvc" => o.hvc = false,
            "--cmdline" => o.extra = value()?,
            "--raw-cmdline" => o.raw = Some(value()?),
            "--stats" => o.stats = true,
            "--button" => o.button = Some(value()?.parse()?),
            "--discovery" => {
                o.discovery = match value()?.as_str() {
                    "auto" => DeviceDiscovery::Auto,
                    "acpi" => DeviceDiscovery::Acpi,
                    "cmdline" => DeviceDiscovery::CommandLine,
                    other => return Err(format!("no such discovery: {other}").into()),
                }
            }
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    Ok(o)
}

fn to_stdout(mut from: UnixStream) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n) = from.read(&mut buffer) {
            if n == 0 {
                break;
            }
            let mut out = std::io::stdout().lock();
            let _ = out.write_all(&buffer[..n]).and_then(|()| out.flush());
        }
    })
}

/// KVM's own counters, where debugfs is mounted. They are sums over the machines that exist.
fn print_kvm_counters() {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/debug/kvm") else {
        return;
    };
    let mut line = String::new();
    for entry in entries.flatten() {
        let value = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let value = value.trim();
        if !value.is_empty() && value != "0" && value.len() < 20 {
            line += &format!("{}={value} ", entry.file_name().to_string_lossy());
        }
    }
    eprintln!("KVM: {line}");
}

fn run() -> Fallible<MachineEnd> {
    let o = options()?;
    let started = Instant::now();
    let mut config = MachineConfig {
        vcpus: o.cpus,
        memory: o.memory << 20,
        command_line: match o.raw {
            Some(line) => line,
            None => format!("{} {}", default_command_line(o.serial, o.hvc), o.extra),
        },
        discovery: o.discovery,
        serial: o.serial,
        devices: vec![DeviceConfig::Rng],
    };
    let mut files = MachineFiles {
        kvm: File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")?
            .into(),
        kernel: File::open(&o.kernel)?,
        initrd: o.initrd.map(File::open).transpose()?,
        serial: None,
        devices: vec![vec![]],
    };
    let mut host_ends = Vec::new();
    if o.serial {
        let (host, guest) = UnixStream::pair()?;
        files.serial = Some(guest.into());
        host_ends.push(host);
    }
    if o.hvc {
        let (host, guest) = UnixStream::pair()?;
        guest.set_nonblocking(true)?;
        config.devices.insert(0, DeviceConfig::Console);
        files.devices.insert(0, vec![guest.into()]);
        host_ends.push(host);
    }
    // Input goes to the console named last.
    let mut input = host_ends.last().map(UnixStream::try_clone).transpose()?;
    let readers: Vec<_> = host_ends.into_iter().map(to_stdout).collect();
    std::thread::spawn(move || {
        if let Some(input) = &mut input {
            let _ = std::io::copy(&mut std::io::stdin().lock(), input);
        }
    });

    let mut machine = Machine::build(&config, files)?;
    let built = started.elapsed();
    machine.start()?;
    if let Some(seconds) = o.button {
        std::thread::sleep(Duration::from_secs_f64(seconds));
        machine.power_button()?;
    }
    rustix::event::poll(
        &mut [rustix::event::PollFd::from_borrowed_fd(
            machine.end_event(),
            rustix::event::PollFlags::IN,
        )],
        None,
    )?;
    let ran = started.elapsed();
    machine.wait_for_output();
    let end = machine.end();
    let exits = machine.exit_counts();
    if o.stats {
        print_kvm_counters();
    }
    drop(machine);
    for reader in readers {
        let _ = reader.join();
    }
    if o.stats {
        eprintln!(
            "built after {built:?}, ended after {ran:?}, gone after {:?}",
            started.elapsed()
        );
        for (vcpu, [port_reads, port_writes, reads, writes, other]) in exits.iter().enumerate() {
            eprintln!(
                "vcpu{vcpu}: {port_reads} port reads, {port_writes} port writes, \
                 {reads} register reads, {writes} register writes, {other} other exits"
            );
        }
    }
    end.ok_or_else(|| "stopped".into())
}

pub(crate) fn main() {
    let code = match run() {
        Ok(MachineEnd::PoweredOff) => 0,
        Ok(end) => {
            eprintln!("boot: {end}");
            if let MachineEnd::Fault(fault) = &end {
                eprintln!("{}", fault.registers);
            }
            2
        }
        Err(error) => {
            eprintln!("boot: {error}");
            1
        }
    };
    std::process::exit(code);
}
