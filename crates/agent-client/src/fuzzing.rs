//! What a hostile guest could send, for the fuzzer and the replay of its seeds.

use std::io;

use capsa_core::ByteStream;
use tokio::io::AsyncWriteExt;

use crate::{AgentClient, Command, Control, ExtractOptions};

/// Lets an agent answer with `input`: its first byte chooses what the agent is asked for.
///
/// # Panics
/// Only where this machine cannot make a runtime or a temporary directory.
#[allow(clippy::expect_used)]
pub fn agent_reply(input: &[u8]) {
    let Some((operation, answer)) = input.split_first() else {
        return;
    };
    let answer = answer.to_vec();
    let (operation, copy) = (operation % 6, answer.clone());
    let client = AgentClient::new(move || {
        let answer = copy.clone();
        async move {
            let (ours, mut theirs) = tokio::io::duplex(answer.len() + (1 << 16));
            theirs.write_all(&answer).await?;
            theirs.shutdown().await?;
            // Takes what the host sends for as long as the host lives.
            tokio::spawn(async move {
                let _ = tokio::io::copy(&mut theirs, &mut tokio::io::sink()).await;
            });
            io::Result::Ok(Box::new(ours) as Box<dyn ByteStream>)
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        match operation {
            0 => drop(client.output(Command::new("true")).await),
            1 => drop(client.files().list("/").await),
            2 => drop(client.files().read("/file").await),
            3 => drop(client.files().write("/file", "content").await),
            4 => {
                let place = tempfile::tempdir().expect("a temporary directory");
                let options = ExtractOptions::default();
                let (files, to) = (client.files(), place.path().join("x"));
                drop(files.copy_out("/x", to, options).await);
            }
            _ => {
                let stream = io::Cursor::new(answer);
                let stream = tokio::io::join(stream, tokio::io::sink());
                if let Ok(mut control) = Control::accept(Box::new(stream)).await {
                    drop(control.boot(crate::boot::BootConfig::default()).await);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn fuzz_seeds_of_a_hostile_guest_are_borne() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/agent_reply");
        let mut count = 0;
        for entry in std::fs::read_dir(seeds).unwrap() {
            super::agent_reply(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count >= 6, "{count} seeds");
    }
}
