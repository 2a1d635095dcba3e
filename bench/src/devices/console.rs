//! A guest's console: commands go in, and lines come out.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::guest::{END, MARK};

/// Lines kept to be shown in an error.
const KEPT: usize = 30;

pub(crate) struct Console {
    input: ChildStdin,
    lines: Receiver<String>,
    last: VecDeque<String>,
    limit: Duration,
}

impl Console {
    /// Nothing on it may take longer than `limit`.
    pub(crate) fn new(input: ChildStdin, output: ChildStdout, limit: Duration) -> Self {
        let (sender, lines) = channel();
        thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = Vec::new();
            while output
                .read_until(b'\n', &mut line)
                .is_ok_and(|count| count > 0)
            {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(text).is_err() {
                    return;
                }
                line.clear();
            }
        });
        Self {
            input,
            lines,
            last: VecDeque::new(),
            limit,
        }
    }

    /// Waits until the guest takes commands.
    pub(crate) fn wait_for_guest(&mut self) -> Result<()> {
        let deadline = Instant::now() + self.limit;
        while !self.next(deadline)?.contains(MARK) {}
        Ok(())
    }

    /// Runs a command. Gives what it wrote.
    pub(crate) fn run(&mut self, command: &str) -> Result<String> {
        let ended = self.try_run(command);
        let (status, output) = ended.with_context(|| format!("the guest's command: {command}"))?;
        if status != "0" {
            bail!("the guest's command ended with {status}: {command}\n{output}");
        }
        Ok(output)
    }

    fn try_run(&mut self, command: &str) -> Result<(String, String)> {
        let deadline = Instant::now() + self.limit;
        self.send(command)?;
        let mut output = String::new();
        loop {
            let line = self.next(deadline)?;
            if let Some((_, status)) = line.split_once(END) {
                return Ok((status.trim().to_owned(), output));
            }
            output.push_str(&line);
            output.push('\n');
        }
    }

    pub(crate) fn send(&mut self, command: &str) -> Result<()> {
        self.input
            .write_all(format!("{command}\n").as_bytes())
            .and_then(|()| self.input.flush())
            .with_context(|| format!("the console takes nothing; its end:\n{}", self.end()))
    }

    /// Waits for the end of the output, which comes when the monitor has ended. Tells whether it came in time.
    pub(crate) fn wait_for_end(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return true,
                Err(RecvTimeoutError::Timeout) => return false,
            }
        }
    }

    fn next(&mut self, deadline: Instant) -> Result<String> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => {
                if self.last.len() == KEPT {
                    self.last.pop_front();
                }
                self.last.push_back(line.clone());
                Ok(line)
            }
            Err(RecvTimeoutError::Timeout) => bail!(
                "it was not done after {} s; the console's end:\n{}",
                self.limit.as_secs(),
                self.end()
            ),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the monitor has ended; the console's end:\n{}", self.end())
            }
        }
    }

    fn end(&self) -> String {
        let lines: Vec<&str> = self.last.iter().map(String::as_str).collect();
        lines.join("\n")
    }
}
