//! The attributes of `apple-main`; see there.

use proc_macro::TokenStream;
use quote::quote;
use syn::{Error, ItemFn, parse_macro_input};

/// Runs an `async fn main` beside the main thread, which is left to Apple's frameworks.
#[proc_macro_attribute]
pub fn main(arguments: TokenStream, item: TokenStream) -> TokenStream {
    expand(arguments, item, &quote!(::apple_main))
}

/// The same for programs that depend on `capsa` alone.
#[proc_macro_attribute]
pub fn capsa_main(arguments: TokenStream, item: TokenStream) -> TokenStream {
    expand(arguments, item, &quote!(::capsa::apple_main))
}

fn expand(
    arguments: TokenStream,
    item: TokenStream,
    runtime: &impl quote::ToTokens,
) -> TokenStream {
    let function = parse_macro_input!(item as ItemFn);
    if !arguments.is_empty() {
        return refuse(&function, "this attribute has no arguments");
    }
    if function.sig.asyncness.is_none() {
        return refuse(&function, "the function must be async");
    }
    if function.sig.ident != "main" || !function.sig.inputs.is_empty() {
        return refuse(&function, "this attribute belongs on `async fn main()`");
    }
    let (attributes, output, block) = (&function.attrs, &function.sig.output, &function.block);
    quote! {
        #(#attributes)*
        fn main() #output {
            async fn main() #output #block
            #runtime::run(main)
        }
    }
    .into()
}

fn refuse(function: &ItemFn, reason: &str) -> TokenStream {
    Error::new_spanned(&function.sig, reason)
        .to_compile_error()
        .into()
}
