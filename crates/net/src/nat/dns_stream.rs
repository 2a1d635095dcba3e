//! DNS over TCP from a guest (RFC 7766): messages behind their 2-byte lengths, several at once.

use smoltcp::socket::tcp;

/// Queries of one connection that wait for their answers; more are left unread.
const MAX_WAITING: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct DnsStream {
    received: Vec<u8>,
    /// Whole queries that were not passed on yet.
    queries: Vec<Vec<u8>>,
    waiting: usize,
    answers: Vec<u8>,
}

impl DnsStream {
    /// Reads queries and writes answers; whether it could do either.
    pub(crate) fn exchange(&mut self, socket: &mut tcp::Socket<'_>) -> bool {
        let mut moved = false;
        while self.waiting < MAX_WAITING && socket.can_recv() {
            let read = socket.recv(|data| {
                let take = data.len().min(64 << 10);
                self.received
                    .extend_from_slice(data.get(..take).unwrap_or_default());
                (take, take)
            });
            if !read.is_ok_and(|read| read > 0) {
                break;
            }
            moved = true;
            self.split();
        }
        self.split();
        if !self.answers.is_empty()
            && let Ok(sent) = socket.send_slice(&self.answers)
        {
            self.answers.drain(..sent);
            moved |= sent > 0;
        }
        moved
    }

    fn split(&mut self) {
        while self.waiting < MAX_WAITING {
            let Some((prefix, rest)) = self.received.split_first_chunk::<2>() else {
                return;
            };
            let length = usize::from(u16::from_be_bytes(*prefix));
            let Some(query) = rest.get(..length) else {
                return;
            };
            self.queries.push(query.to_vec());
            self.waiting += 1;
            self.received.drain(..2 + length);
        }
    }

    /// The queries that came since the last call.
    pub(crate) fn take_queries(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.queries)
    }

    /// An answer to one of the queries; an empty one for none at all.
    pub(crate) fn answer(&mut self, message: &[u8]) {
        self.waiting = self.waiting.saturating_sub(1);
        if let Ok(length) = u16::try_from(message.len())
            && length > 0
        {
            self.answers.extend_from_slice(&length.to_be_bytes());
            self.answers.extend_from_slice(message);
        }
    }

    /// Whether nothing is left to be done once the guest has sent everything.
    pub(crate) const fn is_finished(&self, guest_ended: bool) -> bool {
        guest_ended && self.waiting == 0 && self.answers.is_empty()
    }
}
