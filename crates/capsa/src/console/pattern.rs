//! What [`wait_for`](crate::VmConsole::wait_for) looks for, and how it is found in a stream.
//!
//! Both matchers are automata that take one byte after the other and are never fed a byte twice, so
//! that a match across chunks is found and the work grows with the output alone.

use std::fmt;
use std::sync::Arc;

use capsa_core::{Error, Result};
use regex_automata::Input;
use regex_automata::hybrid::LazyStateID;
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson;
use regex_automata::util::syntax;

/// The largest automaton that a regular expression may become, in bytes.
const MAX_REGEX_SIZE: usize = 1 << 20;
/// How much of the expression's states is kept at a time, in bytes.
const REGEX_CACHE: usize = 4 << 20;

/// What to look for in a console's output: a text, or a regular expression.
///
/// A match ends as early as it can: with the first byte after which the output so far contains one.
/// So `a+` ends behind the first `a`, however the output is cut into pieces.
///
/// ```
/// use capsa::Pattern;
/// let text: Pattern = "login: ".into();
/// let expression = Pattern::regex(r"(?m)^\S+ login: ")?;
/// assert_eq!(text.to_string(), "\"login: \"");
/// # Ok::<(), capsa::Error>(())
/// ```
#[derive(Clone)]
pub struct Pattern(Kind);

#[derive(Clone)]
enum Kind {
    Text(Vec<u8>),
    Regex { text: String, dfa: Arc<DFA> },
}

impl Pattern {
    /// Looks for exactly these bytes.
    pub fn text(text: impl Into<Vec<u8>>) -> Self {
        Self(Kind::Text(text.into()))
    }

    /// Looks for a regular expression over bytes, in the syntax of the `regex` crate with its
    /// flags inline (`(?i)`, `(?m)`, `(?s)`, `(?-u)`).
    ///
    /// Assertions see what has come so far: `$` and `\z` match at its end, which is how a prompt
    /// that nothing follows is told from the same text within a line.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for an expression that does not parse, that is too large, or that
    /// needs Unicode's word boundaries (write `(?-u:\b)`).
    pub fn regex(expression: &str) -> Result<Self> {
        let dfa = DFA::builder()
            .configure(
                DFA::config()
                    .cache_capacity(REGEX_CACHE)
                    .skip_cache_capacity_check(true),
            )
            .syntax(syntax::Config::new().utf8(false))
            .thompson(
                thompson::Config::new()
                    .utf8(false)
                    .nfa_size_limit(Some(MAX_REGEX_SIZE)),
            )
            .build(expression)
            .map_err(|error| refused(expression, &error))?;
        Ok(Self(Kind::Regex {
            text: expression.to_owned(),
            dfa: Arc::new(dfa),
        }))
    }

    pub(super) fn matcher(&self) -> Result<Matcher> {
        Ok(match &self.0 {
            Kind::Text(text) => Matcher::Text(TextMatcher::new(text.clone())),
            Kind::Regex { text, dfa } => {
                let mut cache = dfa.create_cache();
                let start = start_state(dfa, &mut cache).map_err(|error| refused(text, &error))?;
                Matcher::Regex(Box::new(RegexMatcher {
                    dfa: dfa.clone(),
                    cache,
                    state: Some(start),
                }))
            }
        })
    }
}

fn refused(expression: &str, error: &dyn std::error::Error) -> Error {
    // The outer errors say only in which step it failed.
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    Error::invalid_setting(
        "pattern",
        expression,
        cause.to_string().trim().to_owned(),
        r"write a regular expression of the regex crate; a word boundary as (?-u:\b)",
    )
}

impl From<&str> for Pattern {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}

impl From<String> for Pattern {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}

impl From<&String> for Pattern {
    fn from(text: &String) -> Self {
        Self::text(text.as_str())
    }
}

impl From<&[u8]> for Pattern {
    fn from(text: &[u8]) -> Self {
        Self::text(text)
    }
}

impl From<&Pattern> for Pattern {
    fn from(pattern: &Pattern) -> Self {
        pattern.clone()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Text(text) => write!(f, "\"{}\"", text.escape_ascii()),
            Kind::Regex { text, .. } => write!(f, "/{text}/"),
        }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({self})")
    }
}

/// Whether the output so far ends in a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndCheck {
    Match,
    NoMatch,
    /// It does not, and the matcher has to be fed from the beginning again.
    NoMatchAndRestart,
}

pub(super) enum Matcher {
    Text(TextMatcher),
    Regex(Box<RegexMatcher>),
}

impl Matcher {
    /// Takes the next bytes. Where a match ends in or before them: how many of them belong to it.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::Text(matcher) => matcher.feed(bytes),
            Self::Regex(matcher) => matcher.feed(bytes),
        }
    }

    /// Whether a match ends where the bytes so far do.
    pub(super) fn ends_here(&mut self) -> EndCheck {
        match self {
            Self::Text(matcher) if matcher.matched == matcher.text.len() => EndCheck::Match,
            Self::Text(_) => EndCheck::NoMatch,
            Self::Regex(matcher) => matcher.ends_here(),
        }
    }
}

/// Knuth, Morris and Pratt's search.
pub(super) struct TextMatcher {
    text: Vec<u8>,
    /// For each prefix of `text`, the length of its longest proper suffix that is a prefix too.
    fallback: Vec<usize>,
    matched: usize,
}

impl TextMatcher {
    fn new(text: Vec<u8>) -> Self {
        let mut fallback = Vec::with_capacity(text.len());
        let mut length = 0;
        for (index, byte) in text.iter().enumerate() {
            if index > 0 {
                length = next_length(&text, &fallback, length, *byte);
            }
            fallback.push(length);
        }
        Self {
            text,
            fallback,
            matched: 0,
        }
    }

    fn feed(&mut self, bytes: &[u8]) -> Option<usize> {
        if self.text.is_empty() {
            return Some(0);
        }
        for (index, byte) in bytes.iter().enumerate() {
            self.matched = next_length(&self.text, &self.fallback, self.matched, *byte);
            if self.matched == self.text.len() {
                return Some(index + 1);
            }
        }
        None
    }
}

/// The length of the match after one more byte.
fn next_length(text: &[u8], fallback: &[usize], mut length: usize, byte: u8) -> usize {
    loop {
        if text.get(length) == Some(&byte) {
            return length + 1;
        }
        if length == 0 {
            return 0;
        }
        length = fallback.get(length - 1).copied().unwrap_or(0);
    }
}

pub(super) struct RegexMatcher {
    dfa: Arc<DFA>,
    cache: Cache,
    /// `None` once no match can come any more.
    state: Option<LazyStateID>,
}

fn start_state(dfa: &DFA, cache: &mut Cache) -> Result<LazyStateID, regex_automata::MatchError> {
    dfa.start_state_forward(cache, &Input::new(b""))
}

impl RegexMatcher {
    fn feed(&mut self, bytes: &[u8]) -> Option<usize> {
        for (index, byte) in bytes.iter().enumerate() {
            let next = self.dfa.next_state(&mut self.cache, self.state?, *byte);
            // No limit on cache clearings is set, so that the search never gives up.
            let next = next.ok()?;
            // The automaton says one byte late that a match has ended.
            if next.is_match() {
                return Some(index);
            }
            self.state = (!next.is_dead() && !next.is_quit()).then_some(next);
        }
        None
    }

    fn ends_here(&mut self) -> EndCheck {
        let Some(state) = self.state else {
            return EndCheck::NoMatch;
        };
        let clearings = self.cache.clear_count();
        match self.dfa.next_eoi_state(&mut self.cache, state) {
            Ok(end) if end.is_match() => EndCheck::Match,
            // A cleared cache has made `state` meaningless.
            _ if self.cache.clear_count() != clearings => {
                self.state = start_state(&self.dfa, &mut self.cache).ok();
                EndCheck::NoMatchAndRestart
            }
            _ => EndCheck::NoMatch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `text` in pieces of the given sizes; the end of the match.
    fn search(pattern: &Pattern, text: &[u8], sizes: &[usize]) -> Option<usize> {
        let mut matcher = pattern.matcher().unwrap();
        let mut at = 0;
        let mut sizes = sizes.iter().copied().cycle();
        loop {
            match matcher.ends_here() {
                EndCheck::Match => return Some(at),
                EndCheck::NoMatch => {}
                EndCheck::NoMatchAndRestart => assert_eq!(matcher.feed(&text[..at]), None),
            }
            if at == text.len() {
                return None;
            }
            let size = sizes.next().unwrap_or(1).clamp(1, text.len() - at);
            match matcher.feed(&text[at..at + size]) {
                Some(offset) => return Some(at + offset),
                None => at += size,
            }
        }
    }

    #[test]
    fn a_greedy_expression_ends_as_early_as_it_can_however_the_text_is_cut() {
        let pattern = Pattern::regex("ba+").unwrap();
        for sizes in [[1], [2], [100]] {
            assert_eq!(search(&pattern, b"xxbaaaa", &sizes), Some(4));
        }
    }

    #[test]
    fn an_end_assertion_matches_at_the_end_of_what_has_come() {
        let prompt = Pattern::regex(r"# $").unwrap();
        assert_eq!(search(&prompt, b"a # b\n~ # ", &[100]), Some(10));
        assert_eq!(search(&prompt, b"a # b", &[100]), None);
    }

    #[test]
    fn an_anchored_expression_that_cannot_match_any_more_finds_nothing() {
        let pattern = Pattern::regex(r"\Aab").unwrap();
        assert_eq!(search(&pattern, b"xab", &[1]), None);
        assert_eq!(search(&pattern, b"abx", &[1]), Some(2));
    }

    #[test]
    fn bytes_that_are_no_text_are_searched() {
        let pattern = Pattern::regex(r"(?-u)\xff\x00").unwrap();
        assert_eq!(search(&pattern, b"\xfe\xff\x00", &[1]), Some(3));
        assert_eq!(
            search(&Pattern::text(*b"\xff\x00"), b"\xfe\xff\x00", &[2]),
            Some(3)
        );
    }

    #[test]
    fn an_expression_that_cannot_be_used_is_refused_with_the_reason() {
        for (expression, word) in [
            ("(", "unclosed"),
            (r"\bfoo", "word"),
            (r"\w{9999}", "limit"),
        ] {
            let error = Pattern::regex(expression).unwrap_err().to_string();
            assert!(
                error.contains(expression) && error.contains(word),
                "{error}"
            );
        }
    }

    #[test]
    fn a_cache_too_small_for_the_expression_costs_time_but_no_match() {
        // (x|y)*x followed by 14 more needs thousands of states.
        let mut pattern = Pattern::regex("x[xy]{14}z").unwrap();
        if let Kind::Regex { dfa, .. } = &mut pattern.0 {
            *dfa = Arc::new(
                DFA::builder()
                    .configure(
                        DFA::config()
                            .cache_capacity(1)
                            .skip_cache_capacity_check(true),
                    )
                    .build("x[xy]{14}z")
                    .unwrap(),
            );
        }
        let text: Vec<u8> = (0..4000_u32)
            .map(|n| {
                if n.wrapping_mul(2654435761) >> 31 == 0 {
                    b'x'
                } else {
                    b'y'
                }
            })
            .chain(*b"xxxxxxxxxxxxxxxz")
            .collect();
        assert_eq!(search(&pattern, &text, &[1]), Some(text.len()));
    }

    proptest! {
        #[test]
        fn a_text_is_found_where_a_plain_search_finds_it(
            needle in "[ab]{0,5}", text in "[ab]{0,40}", sizes in prop::collection::vec(1_usize..9, 1..8)
        ) {
            let found = search(&needle.as_str().into(), text.as_bytes(), &sizes);
            prop_assert_eq!(found, text.find(&needle).map(|at| at + needle.len()));
        }

        #[test]
        fn an_expression_ends_where_the_first_matching_prefix_ends(
            expression in prop::sample::select(vec!["a+b", "(ab|ba)*c", "a{2,3}", "a?", "b.c", "(?i)AB+"]),
            text in "[abc]{0,40}", sizes in prop::collection::vec(1_usize..9, 1..8)
        ) {
            let model = regex::bytes::Regex::new(expression).unwrap();
            let expected = (0..=text.len()).find(|end| model.is_match(&text.as_bytes()[..*end]));
            let found = search(&Pattern::regex(expression).unwrap(), text.as_bytes(), &sizes);
            prop_assert_eq!(found, expected);
        }
    }
}
