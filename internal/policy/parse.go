package policy

// Policy is a compiled policy document: immutable and safe for concurrent use.
type Policy struct{ statements []statement }

type statement struct{ sid string }

// Scratch is working memory for Evaluate. The zero value is ready; it belongs to one goroutine at a time.
type Scratch struct{ buf []uint16 }

// Reset wipes what evaluations left behind and keeps the memory.
func (s *Scratch) Reset() { clear(s.buf[:cap(s.buf)]) }

// Parse checks and compiles a document. bind is asked about every principal that it names; nil binds by ARN alone, and every principal
// exists. Every refusal is an *Error.
func Parse(document []byte, kind Kind, bind Binder) (*Policy, error) { panic("skeleton") }

// Evaluate says what the policy's statements say of r. It allocates nothing.
func (p *Policy) Evaluate(r *Request) Result { panic("skeleton") }

// Len is the number of statements.
func (p *Policy) Len() int { return len(p.statements) }

// Sid is the Sid of statement n, counted from 1; "" where it has none.
func (p *Policy) Sid(n int) string { return p.statements[n-1].sid }

// Principals are the ARNs of the users, roles, role sessions and accounts that the document names, in ascending order, each once.
func (p *Policy) Principals() []string { panic("skeleton") }
