//! The device process: one thread for each device's messages, and those that the devices start.

use std::error::Error;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use capsa_process::SendError;
use capsa_virtio::VirtioDevice;

use super::confinement;
use super::protocol::{self, Event, Start};

capsa_process::role! {
    /// Runs the devices of one VM for QEMU.
    pub(super) static DEVICES: "devices", begins &protocol::MAGIC, runs run;
}

/// A device that is served on a thread.
struct Served {
    socket: UnixStream,
    thread: JoinHandle<()>,
}

fn run(socket: OwnedFd) -> Result<(), Box<dyn Error>> {
    // Where it fails, shares go on with what there is.
    let _ = capsa_process::confine::raise_open_files();
    let socket = Arc::new(socket);
    let mut buffer = Vec::new();
    let Some(descriptors) = capsa_process::receive(&socket, &mut buffer)? else {
        return Ok(());
    };
    let start = match protocol::decode_start(&buffer) {
        Ok(start) => start,
        Err(error) => {
            let reason = error.to_string();
            return tell(&socket, &Event::Failed { reason });
        }
    };
    for missing in confinement::enter(&socket, &start.devices, &descriptors) {
        tell(&socket, &Event::Warning(missing.to_string()))?;
    }
    let started = make(start, descriptors).and_then(|devices| serve_all(&socket, devices));
    let served = match started {
        Ok(served) => served,
        Err(reason) => return tell(&socket, &Event::Failed { reason }),
    };
    tell(&socket, &Event::Ready)?;
    // Nothing is asked for later. The end of the socket is the library's, or that of the VM.
    while capsa_process::receive(&socket, &mut buffer)?.is_some() {}
    for Served { socket, .. } in &served {
        // It fails where QEMU is gone already.
        let _gone = socket.shutdown(Shutdown::Both);
    }
    // A device writes down what it has when it goes.
    for Served { thread, .. } in served {
        let _panicked = thread.join();
    }
    Ok(())
}

/// A device with its name and its socket to QEMU.
struct Made {
    name: String,
    socket: UnixStream,
    device: Box<dyn VirtioDevice>,
}

fn make(start: Start, descriptors: Vec<OwnedFd>) -> Result<Vec<Made>, String> {
    let counts = start.devices.iter().map(|setup| 1 + setup.descriptors());
    let needed: usize = counts.sum();
    if descriptors.len() != needed {
        let got = descriptors.len();
        return Err(format!(
            "the start message came with {got} descriptors instead of {needed}"
        ));
    }
    let mut descriptors = descriptors.into_iter();
    let mut made = Vec::with_capacity(start.devices.len());
    for (index, setup) in start.devices.into_iter().enumerate() {
        let name = format!("{}{index}", setup.kind());
        let Some(socket) = descriptors.next() else {
            return Err(format!("device {name} came without its socket"));
        };
        let files = descriptors.by_ref().take(setup.descriptors()).collect();
        let (device, _control) = setup
            .make(files, None)
            .map_err(|error| format!("device {name}: {error}"))?;
        made.push(Made {
            name,
            socket: socket.into(),
            device,
        });
    }
    Ok(made)
}

fn serve_all(control: &Arc<OwnedFd>, devices: Vec<Made>) -> Result<Vec<Served>, String> {
    devices
        .into_iter()
        .map(|device| {
            let name = device.name.clone();
            serve(Arc::clone(control), device).map_err(|error| format!("device {name}: {error}"))
        })
        .collect()
}

fn serve(control: Arc<OwnedFd>, made: Made) -> std::io::Result<Served> {
    let Made {
        name,
        socket,
        device,
    } = made;
    let ours = socket.try_clone()?;
    let thread = std::thread::Builder::new()
        .name(format!("qemu-{name}"))
        .spawn(move || {
            let served = catch_unwind(AssertUnwindSafe(|| {
                capsa_vhost_user::serve(socket, device, &name, || Ok(()))
            }));
            let reason = match served {
                // QEMU is gone, or about to be.
                Ok(Ok(())) => return,
                Ok(Err(error)) => format!("device {name}: {error}"),
                Err(_) => format!("device {name}: its thread panicked"),
            };
            // Nobody is left to be told where this fails.
            let _unheard = tell(&control, &Event::Failed { reason });
        })?;
    Ok(Served {
        socket: ours,
        thread,
    })
}

fn tell(socket: &OwnedFd, event: &Event) -> Result<(), Box<dyn Error>> {
    match capsa_process::send(socket, &protocol::encode(event)?, &[]) {
        // The library is gone, and nobody is left to be told.
        Err(SendError::Io(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        sent => Ok(sent?),
    }
}
