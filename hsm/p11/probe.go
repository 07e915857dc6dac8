package p11

import (
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"

	"github.com/keyplane/keyplane/hsm"
	"github.com/miekg/pkcs11"
)

// Report is what a probe found out about a token.
type Report struct {
	Token        hsm.TokenInfo `json:"token"`
	Library      string        `json:"library"`      // description and version of the module
	Cryptoki     string        `json:"cryptoki"`     // version of the interface
	SessionMax   uint          `json:"sessions_max"` // 0: the token does not say
	RWSessionMax uint          `json:"sessions_rw_max"`
	PINMin       uint          `json:"pin_min"`
	PINMax       uint          `json:"pin_max"`
	Roots        bool          `json:"roots"` // the roots are there and as they must be
	Clonable     bool          `json:"roots_clonable"`
	RootsFault   string        `json:"roots_fault,omitempty"`
	Audit        string        `json:"audit_key"` // what there is of an audit key, or could be
	Offers       []Offer       `json:"key_specs"`
	Mechanisms   []Mechanism   `json:"mechanisms"`
}

// Mechanism is one that the token lists. Key sizes are in the mechanism's own unit: bits or bytes.
type Mechanism struct {
	Type   uint   `json:"type"`
	Name   string `json:"name"` // "-": none that matters here
	KeyMin uint   `json:"key_min"`
	KeyMax uint   `json:"key_max"`
	Flags  uint   `json:"flags"`
}

// Offer says what of a KMS key spec keyplane does inside this token.
type Offer struct {
	KeySpec    string   `json:"key_spec"`
	Mechanisms []string `json:"mechanisms,omitempty"`      // of hsm: what worked with a key that was made, wrapped and unwrapped here
	Decoded    []string `json:"decoded_outside,omitempty"` // those of them that are CKM_RSA_X_509 in the token, and OAEP decoding here
	Algorithms []string `json:"algorithms,omitempty"`      // of the API that come of it
	Missing    []string `json:"missing,omitempty"`         // mechanism, or "keys": why not
	Imports    []string `json:"imports,omitempty"`         // wrappings by which keys come in
	Here       []string `json:"imports_here,omitempty"`    // those of them whose RSA block is decoded outside of the token
	Exports    []string `json:"exports,omitempty"`         // wrappings by which keys leave for other tokens
}

// Probe opens the token and finds out what it can do. Mechanism lists lie, so everything an offer names has been done with session keys,
// which leave nothing behind.
func Probe(uri string) (Report, error) {
	t, err := open(uri)
	if err != nil {
		return Report{}, err
	}
	defer t.Close()
	r := Report{Token: t.info}
	if err := t.describe(&r); err != nil {
		return r, err
	}
	if has, err := t.Roots(); err != nil {
		r.RootsFault = err.Error()
	} else {
		r.Roots, r.Clonable = true, has.Clonable
	}
	if r.Audit, err = t.probeAudit(); err != nil {
		return r, err
	}
	err = t.try(&r)
	return r, err
}

// probeAudit says whether the audit key is there, and else whether the token could have one.
func (t *Token) probeAudit() (string, error) {
	s, err := t.OpenAuditSession()
	if err == nil {
		return "present, never extractable", s.Close()
	}
	if !errors.Is(err, hsm.ErrNoAuditKey) {
		return err.Error(), nil
	}
	t.mod.mu.RLock()
	defer t.mod.mu.RUnlock()
	lacks, lerr := t.lacks()
	if lerr != nil || lacks == "" {
		return err.Error(), lerr
	}
	return lacks + ": it cannot have one, and another token has to sign the audit log", nil
}

func (t *Token) describe(r *Report) error {
	t.mod.mu.RLock()
	defer t.mod.mu.RUnlock()
	info, err := t.mod.ctx.GetInfo()
	if err != nil {
		return failed("C_GetInfo", err)
	}
	r.Library = fmt.Sprintf("%s %d.%d", strings.TrimSpace(info.LibraryDescription), info.LibraryVersion.Major, info.LibraryVersion.Minor)
	r.Cryptoki = fmt.Sprintf("%d.%d", info.CryptokiVersion.Major, info.CryptokiVersion.Minor)
	ti, err := t.mod.ctx.GetTokenInfo(t.slot)
	if err != nil {
		return failed("C_GetTokenInfo", err)
	}
	r.SessionMax, r.RWSessionMax = known(ti.MaxSessionCount), known(ti.MaxRwSessionCount)
	r.PINMin, r.PINMax = ti.MinPinLen, ti.MaxPinLen
	list, err := t.mod.ctx.GetMechanismList(t.slot)
	if err != nil {
		return failed("C_GetMechanismList", err)
	}
	for _, m := range list {
		mi, err := t.mod.ctx.GetMechanismInfo(t.slot, []*pkcs11.Mechanism{m})
		if err != nil {
			continue // listed and unknown: it cannot be used either
		}
		r.Mechanisms = append(r.Mechanisms, Mechanism{m.Mechanism, mechanismName(m.Mechanism), mi.MinKeySize, mi.MaxKeySize, mi.Flags})
	}
	sort.Slice(r.Mechanisms, func(a, b int) bool { return r.Mechanisms[a].Type < r.Mechanisms[b].Type })
	return nil
}

// known maps CK_UNAVAILABLE_INFORMATION to 0, which several modules use for "unlimited" as well.
func known(n uint) uint {
	if n == ^uint(0) {
		return 0
	}
	return n
}

// WriteTo prints the report as lines of text.
func (r Report) WriteTo(w io.Writer) (int64, error) {
	var b strings.Builder
	limit := func(n uint) string {
		if n == 0 {
			return "no stated limit"
		}
		return fmt.Sprint(n)
	}
	fmt.Fprintf(&b, "token      %s, serial %s\n", r.Token.Label, r.Token.Serial)
	fmt.Fprintf(&b, "maker      %s, %s, firmware %s\n", r.Token.Manufacturer, r.Token.Model, r.Token.Firmware)
	fmt.Fprintf(&b, "module     %s (%s, Cryptoki %s)\n", r.Token.Module, r.Library, r.Cryptoki)
	if r.Token.Software {
		b.WriteString("protection software: keys are protected by this host only\n")
	}
	fmt.Fprintf(&b, "sessions   %s, read-write %s\n", limit(r.SessionMax), limit(r.RWSessionMax))
	fmt.Fprintf(&b, "PIN length %d to %d\n", r.PINMin, r.PINMax)
	if r.Roots {
		fmt.Fprintf(&b, "roots      present, %s\n", kindOf(r.Clonable))
	} else {
		fmt.Fprintf(&b, "roots      %s\n", r.RootsFault)
	}
	fmt.Fprintf(&b, "audit key  %s\n", r.Audit)
	b.WriteString("\nKMS key specs whose keys can be in this token, with what worked when tried (RSA with 2048 bits):\n")
	for _, o := range r.Offers {
		algorithms := strings.Join(o.Algorithms, " ")
		if algorithms == "" {
			algorithms = "-"
		}
		fmt.Fprintf(&b, "  %-23s %s\n", o.KeySpec, algorithms)
		if len(o.Mechanisms) > 0 {
			fmt.Fprintf(&b, "  %-23s   by %s\n", "", strings.Join(o.Mechanisms, ", "))
		}
		if len(o.Decoded) > 0 {
			fmt.Fprintf(&b, "  %-23s   by CKM_RSA_X_509, and decoded outside of the token: %s\n", "", strings.Join(o.Decoded, ", "))
		}
		if len(o.Imports) > 0 {
			fmt.Fprintf(&b, "  %-23s   imported by %s\n", "", strings.Join(o.Imports, ", "))
		}
		if len(o.Here) > 0 {
			fmt.Fprintf(&b, "  %-23s   with the RSA block decoded outside of the token: %s\n", "", strings.Join(o.Here, ", "))
		}
		if len(o.Exports) > 0 {
			fmt.Fprintf(&b, "  %-23s   wrapped for other tokens by %s\n", "", strings.Join(o.Exports, ", "))
		}
		for _, m := range o.Missing {
			fmt.Fprintf(&b, "  %-23s   not %s\n", "", m)
		}
	}
	b.WriteString("\nmechanisms the token lists (key sizes in the mechanism's unit):\n")
	for _, m := range r.Mechanisms {
		fmt.Fprintf(&b, "  %08x %-34s %d..%d\n", m.Type, m.Name, m.KeyMin, m.KeyMax)
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}

// Mechanism numbers that the binding lacks: PKCS#11 3.0 §6.3 and 3.2 §6.67, §6.68.
const (
	ckmMLKEMKeyPairGen = 0x0000000f
	ckmMLKEM           = 0x00000017
	ckmMLDSAKeyPairGen = 0x0000001c
	ckmMLDSA           = 0x0000001d
)

// names of the mechanisms that matter to keyplane; others print as numbers.
var mechanismNames = map[uint]string{
	pkcs11.CKM_AES_KEY_GEN: "CKM_AES_KEY_GEN", pkcs11.CKM_AES_ECB: "CKM_AES_ECB", pkcs11.CKM_AES_CBC: "CKM_AES_CBC",
	pkcs11.CKM_AES_GCM: "CKM_AES_GCM", pkcs11.CKM_AES_CTR: "CKM_AES_CTR", pkcs11.CKM_AES_CMAC: "CKM_AES_CMAC",
	pkcs11.CKM_AES_KEY_WRAP: "CKM_AES_KEY_WRAP", pkcs11.CKM_AES_KEY_WRAP_PAD: "CKM_AES_KEY_WRAP_PAD",
	pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN: "CKM_RSA_PKCS_KEY_PAIR_GEN", pkcs11.CKM_RSA_PKCS: "CKM_RSA_PKCS",
	pkcs11.CKM_RSA_PKCS_OAEP: "CKM_RSA_PKCS_OAEP", pkcs11.CKM_RSA_PKCS_PSS: "CKM_RSA_PKCS_PSS",
	pkcs11.CKM_RSA_X_509: "CKM_RSA_X_509", ckmAESKeyWrapKWP: "CKM_AES_KEY_WRAP_KWP",
	pkcs11.CKM_RSA_AES_KEY_WRAP: "CKM_RSA_AES_KEY_WRAP",
	pkcs11.CKM_EC_KEY_PAIR_GEN:  "CKM_EC_KEY_PAIR_GEN", pkcs11.CKM_ECDSA: "CKM_ECDSA", pkcs11.CKM_ECDH1_DERIVE: "CKM_ECDH1_DERIVE",
	ckmECEdwardsKeyPairGen: "CKM_EC_EDWARDS_KEY_PAIR_GEN", ckmEdDSA: "CKM_EDDSA",
	pkcs11.CKM_GENERIC_SECRET_KEY_GEN: "CKM_GENERIC_SECRET_KEY_GEN",
	pkcs11.CKM_SHA224_HMAC:            "CKM_SHA224_HMAC", pkcs11.CKM_SHA256_HMAC: "CKM_SHA256_HMAC",
	pkcs11.CKM_SHA384_HMAC: "CKM_SHA384_HMAC", pkcs11.CKM_SHA512_HMAC: "CKM_SHA512_HMAC",
	ckmMLKEMKeyPairGen: "CKM_ML_KEM_KEY_PAIR_GEN", ckmMLKEM: "CKM_ML_KEM",
	ckmMLDSAKeyPairGen: "CKM_ML_DSA_KEY_PAIR_GEN", ckmMLDSA: "CKM_ML_DSA",
}

func mechanismName(m uint) string {
	if n, ok := mechanismNames[m]; ok {
		return n
	}
	return "-"
}
