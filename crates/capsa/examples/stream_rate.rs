//! How fast a command's streams are beside a raw vsock stream, both ways:
//! `cargo run --release --package capsa --example stream_rate`, and in the lab `cargo xtask lab -- target/release/examples/stream_rate`.
//! `bench/README.md` has figures.

use std::time::{Duration, Instant};

use capsa::{Capsa, Command, CommandInput, Sandbox};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const ROUNDS: usize = 5;
const MIB: usize = 64;
const PIECE: usize = 256 << 10;
const PORT: u32 = 5000;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> Result<()> {
    let sandbox = Capsa::sandbox().memory_mib(512).create().await?;
    println!("{} MiB, {} rounds, {:?}", MIB, ROUNDS, sandbox.backend());
    let made = sandbox
        .shell(&format!("head -c {} /dev/zero > /tmp/big", MIB << 20))
        .await?;
    if made.status.code() != Some(0) {
        return Err("the guest cannot make its file".into());
    }
    let mut rates = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        let [raw_out, exec_out, raw_in, exec_in] = &mut rates;
        raw_out.push(raw_out_of(&sandbox).await?);
        exec_out.push(exec_out_of(&sandbox).await?);
        raw_in.push(raw_into(&sandbox).await?);
        exec_in.push(exec_into(&sandbox).await?);
    }
    let [raw_out, exec_out, raw_in, exec_in] = rates.map(median);
    for (way, raw, exec) in [
        ("out of the guest", raw_out, exec_out),
        ("into the guest", raw_in, exec_in),
    ] {
        println!(
            "{way}: vsock {raw:.1} MiB/s, exec {exec:.1} MiB/s: {:.2}",
            exec / raw
        );
    }
    Ok(())
}

async fn raw_out_of(sandbox: &Sandbox) -> Result<f64> {
    let mut listener = machine(sandbox)?.vsock_listen(PORT).await?;
    let script = format!("vsock connect {PORT} < /tmp/big");
    let guest = sandbox.shell(&script);
    let host = async {
        let stream = listener.accept().await?;
        drain(stream, "vsock").await
    };
    let (_, seconds) = tokio::join!(guest, host);
    rate(seconds?)
}

async fn exec_out_of(sandbox: &Sandbox) -> Result<f64> {
    let mut child = sandbox
        .spawn(Command::new("cat").argument("/tmp/big"))
        .await?;
    let stdout = child.stdout.take().ok_or("no output")?;
    let seconds = drain(stdout, "exec").await?;
    child.wait().await?;
    rate(seconds)
}

async fn raw_into(sandbox: &Sandbox) -> Result<f64> {
    let mut listener = machine(sandbox)?.vsock_listen(PORT).await?;
    let script = format!("vsock connect {PORT} < /dev/null > /dev/null");
    let guest = sandbox.shell(&script);
    let host = async {
        let stream = listener.accept().await?;
        let began = Instant::now();
        fill(stream).await?;
        Ok::<_, Box<dyn std::error::Error>>(began)
    };
    let (ended, began) = tokio::join!(guest, host);
    ended?;
    rate(began?.elapsed())
}

async fn exec_into(sandbox: &Sandbox) -> Result<f64> {
    let mut child = sandbox
        .spawn(
            Command::new("sh")
                .arguments(["-c", "cat > /dev/null"])
                .stdin(CommandInput::Piped),
        )
        .await?;
    let stdin = child.stdin.take().ok_or("no input")?;
    let began = Instant::now();
    fill(stdin).await?;
    child.wait().await?;
    rate(began.elapsed())
}

fn machine(sandbox: &Sandbox) -> Result<&capsa::VmHandle> {
    Ok(sandbox.vm().ok_or("a machine of another process")?)
}

/// From the first byte to the last.
async fn drain(mut stream: impl AsyncRead + Unpin, name: &str) -> Result<Duration> {
    let mut piece = vec![0; PIECE];
    let mut total = stream.read(&mut piece).await?;
    let began = Instant::now();
    loop {
        match stream.read(&mut piece).await? {
            0 => break,
            count => total += count,
        }
    }
    if total != MIB << 20 {
        return Err(format!("{name} brought {total} bytes").into());
    }
    Ok(began.elapsed())
}

async fn fill(mut stream: impl AsyncWrite + Unpin) -> Result<()> {
    let piece = vec![0; PIECE];
    for _ in 0..(MIB << 20) / PIECE {
        stream.write_all(&piece).await?;
    }
    Ok(stream.shutdown().await?)
}

fn rate(took: Duration) -> Result<f64> {
    Ok(MIB as f64 / took.as_secs_f64())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(ROUNDS / 2).copied().unwrap_or(f64::NAN)
}
