//! Connections to TCP ports of the guest's loopback interface.

use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::thread;

use capsa_agent_protocol::{Failure, Reply};

use super::{Connection, STACK_BYTES};

pub(super) fn connect(port: u16) -> io::Result<TcpStream> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .or_else(|error| TcpStream::connect((Ipv6Addr::LOCALHOST, port)).map_err(|_| error))
}

pub(super) fn serve(mut connection: Connection, port: u16) -> io::Result<()> {
    let mut program = match connect(port) {
        Ok(program) => program,
        Err(error) => {
            let failure = Failure::system(&error, format!("cannot connect to port {port}"));
            return connection.reply(&Reply::Failed(failure));
        }
    };
    program.set_nodelay(true)?;
    connection.reply(&Reply::Done)?;
    let (socket, incoming) = connection.into_parts();
    program.write_all(&incoming.into_rest())?;
    let mut host = File::from(socket);
    let (mut from_program, mut to_host) = (program.try_clone()?, host.try_clone()?);
    thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let copied = io::copy(&mut from_program, &mut to_host);
            let how = rustix::net::Shutdown::Write;
            let _ = rustix::net::shutdown(to_host.as_fd(), how);
            if copied.is_err() {
                let _ = from_program.shutdown(Shutdown::Both);
            }
        })?;
    let copied = io::copy(&mut host, &mut program);
    let _ = program.shutdown(Shutdown::Write);
    copied.map(|_| ())
}
