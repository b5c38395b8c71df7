//! Token verification: OIDC discovery, JWKS cache, claims to user.
