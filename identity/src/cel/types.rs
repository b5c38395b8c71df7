//! What is known of a value before it is there.

use std::fmt;

/// A type. `Any` is known only once there is a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Any,
    Bool,
    Int,
    Double,
    Text,
    Null,
    List(Box<Type>),
    /// Keys are texts.
    Map(Box<Type>),
    Optional(Box<Type>),
}

impl Type {
    pub(crate) fn list(of: Self) -> Self {
        Self::List(Box::new(of))
    }

    pub(crate) fn optional(of: Self) -> Self {
        Self::Optional(Box::new(of))
    }

    /// Whether a value of this type may be one of that.
    pub(crate) fn may_be(&self, that: &Self) -> bool {
        match (self, that) {
            (Self::Any, _) | (_, Self::Any) => true,
            (Self::List(one), Self::List(other))
            | (Self::Map(one), Self::Map(other))
            | (Self::Optional(one), Self::Optional(other)) => one.may_be(other),
            (one, other) => one == other,
        }
    }

    /// What is known of a value that has one type or the other; nothing joins a text and a number.
    pub(crate) fn or(&self, that: &Self) -> Option<Self> {
        match (self, that) {
            (Self::Any, _) | (_, Self::Any) => Some(Self::Any),
            (Self::List(one), Self::List(other)) => Some(Self::list(one.or(other)?)),
            (Self::Map(one), Self::Map(other)) => Some(Self::Map(Box::new(one.or(other)?))),
            (Self::Optional(one), Self::Optional(other)) => Some(Self::optional(one.or(other)?)),
            (one, other) => (one == other).then(|| one.clone()),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("dyn"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Double => f.write_str("double"),
            Self::Text => f.write_str("string"),
            Self::Null => f.write_str("null"),
            Self::List(of) => write!(f, "list({of})"),
            Self::Map(of) => write!(f, "map(string, {of})"),
            Self::Optional(of) => write!(f, "optional({of})"),
        }
    }
}
