//! Regular expressions that mean the same in Go (RE2) and in Rust: a pattern is a constant, is read once, and is
//! refused where the two differ.
//!
//! Left out are flags, look of Unicode classes, word boundaries (Unicode here, ASCII there), named groups, and set
//! operations in brackets (which Rust alone has). `\d`, `\w` and `\s` are ASCII in Go and are made so here.

use regex::Regex;
use regex_syntax::ast::{
    self, AssertionKind, Ast, ClassPerl, ClassPerlKind, ClassSet, ClassSetItem, GroupKind, LiteralKind,
    RepetitionKind, RepetitionRange,
};

/// Longest pattern, in bytes.
const MAX_PATTERN: usize = 1024;
/// Most repetitions (RE2 has 1,000).
const MAX_REPEAT: u32 = 100;
/// Most memory for a pattern, in bytes.
const MAX_SIZE: usize = 256 * 1024;

/// Reads a pattern.
///
/// # Errors
/// What in it is refused.
pub(super) fn parse(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > MAX_PATTERN {
        return Err("a pattern is longer than 1,024 bytes".into());
    }
    let tree = ast::parse::ParserBuilder::new()
        .nest_limit(32)
        .build()
        .parse(pattern)
        .map_err(|error| format!("{pattern:?} is not a pattern: {}", error.kind()))?;
    let mut perl = Vec::new();
    look(&tree, &mut perl).map_err(|what| format!("{pattern:?} has {what}, which is not in the subset"))?;
    let mut text = String::new();
    let mut from = 0;
    for (start, end, ascii) in perl {
        text.push_str(&pattern[from..start]);
        text.push_str(ascii);
        from = end;
    }
    text.push_str(&pattern[from..]);
    regex::RegexBuilder::new(&text)
        .size_limit(MAX_SIZE)
        .build()
        .map_err(|error| format!("{pattern:?} is not a pattern: {error}"))
}

/// Places of Perl classes, and what stands there instead.
type Perl = Vec<(usize, usize, &'static str)>;

fn look(tree: &Ast, perl: &mut Perl) -> Result<(), &'static str> {
    match tree {
        Ast::Empty(_) | Ast::Dot(_) => Ok(()),
        Ast::Literal(literal) => look_literal(literal),
        Ast::Flags(_) => Err("flags"),
        Ast::ClassUnicode(_) => Err("a Unicode class"),
        Ast::ClassPerl(class) => {
            perl.push(ascii(class, false)?);
            Ok(())
        }
        Ast::Assertion(assertion) => match assertion.kind {
            AssertionKind::StartLine
            | AssertionKind::EndLine
            | AssertionKind::StartText
            | AssertionKind::EndText => Ok(()),
            _ => Err("a word boundary"),
        },
        Ast::ClassBracketed(class) => match &class.kind {
            ClassSet::Item(item) => look_item(item, perl),
            ClassSet::BinaryOp(_) => Err("an operation on classes"),
        },
        Ast::Repetition(repetition) => {
            if let RepetitionKind::Range(range) = &repetition.op.kind {
                let most = match range {
                    RepetitionRange::Exactly(n) | RepetitionRange::AtLeast(n) => *n,
                    RepetitionRange::Bounded(_, n) => *n,
                };
                if most > MAX_REPEAT {
                    return Err("more than 100 repetitions");
                }
            }
            if matches!(*repetition.ast, Ast::Repetition(_) | Ast::Assertion(_) | Ast::Empty(_)) {
                return Err("a repetition of a repetition, an anchor or nothing");
            }
            look(&repetition.ast, perl)
        }
        Ast::Group(group) => match &group.kind {
            GroupKind::CaptureIndex(_) => look(&group.ast, perl),
            GroupKind::CaptureName { .. } => Err("a named group"),
            GroupKind::NonCapturing(flags) if flags.items.is_empty() => look(&group.ast, perl),
            GroupKind::NonCapturing(_) => Err("flags"),
        },
        Ast::Alternation(alternation) => alternation.asts.iter().try_for_each(|tree| look(tree, perl)),
        Ast::Concat(concat) => concat.asts.iter().try_for_each(|tree| look(tree, perl)),
    }
}

fn look_literal(literal: &ast::Literal) -> Result<(), &'static str> {
    match literal.kind {
        LiteralKind::Verbatim | LiteralKind::Meta => Ok(()),
        LiteralKind::Special(_) => Ok(()),
        _ => Err("an escape of a character that needs none, or by its number"),
    }
}

fn look_item(item: &ClassSetItem, perl: &mut Perl) -> Result<(), &'static str> {
    match item {
        ClassSetItem::Empty(_) | ClassSetItem::Ascii(_) => Ok(()),
        ClassSetItem::Literal(literal) => look_literal(literal),
        ClassSetItem::Range(range) => look_literal(&range.start).and(look_literal(&range.end)),
        ClassSetItem::Unicode(_) => Err("a Unicode class"),
        ClassSetItem::Perl(class) => {
            perl.push(ascii(class, true)?);
            Ok(())
        }
        ClassSetItem::Bracketed(_) => Err("a class within a class"),
        ClassSetItem::Union(union) => union.items.iter().try_for_each(|item| look_item(item, perl)),
    }
}

fn ascii(class: &ClassPerl, bracketed: bool) -> Result<(usize, usize, &'static str), &'static str> {
    let text = match (&class.kind, class.negated, bracketed) {
        (ClassPerlKind::Digit, false, false) => "[0-9]",
        (ClassPerlKind::Digit, true, false) => "[^0-9]",
        (ClassPerlKind::Word, false, false) => "[0-9A-Za-z_]",
        (ClassPerlKind::Word, true, false) => "[^0-9A-Za-z_]",
        (ClassPerlKind::Space, false, false) => r"[\t\n\f\r ]",
        (ClassPerlKind::Space, true, false) => r"[^\t\n\f\r ]",
        (ClassPerlKind::Digit, false, true) => "0-9",
        (ClassPerlKind::Word, false, true) => "0-9A-Za-z_",
        (ClassPerlKind::Space, false, true) => r"\t\n\f\r ",
        (_, true, true) => return Err("a negated class within a class"),
    };
    Ok((class.span.start.offset, class.span.end.offset, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_go() {
        let digits = parse(r"^\d+$").unwrap();
        assert!(digits.is_match("42"));
        // An Arabic-Indic digit: Rust's own \d has it, Go's has not.
        assert!(!digits.is_match("\u{664}"));
        assert!(!digits.is_match("42\n"));
        assert!(parse(r"^[\w.-]+@example\.com$").unwrap().is_match("a.b@example.com"));
        assert!(!parse(r"^\w+$").unwrap().is_match("älice"));
    }

    #[test]
    fn what_differs_is_refused() {
        for pattern in [
            r"(?i)a",
            r"\bword",
            r"\pL",
            r"[a&&b]",
            r"[[a]b]",
            r"(?P<n>a)",
            r"[\D]",
            r"a{101}",
            r"a**",
            r"(?=a)",
            r"\x41",
            r"^*",
            "(",
            r"(?:(?x) a)",
        ] {
            assert!(parse(pattern).is_err(), "{pattern}");
        }
        assert!(parse(&"a".repeat(1025)).is_err());
    }
}
