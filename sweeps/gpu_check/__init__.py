"""What a GPU must show: experiments through Ray and the trainable of a sweep, and their criteria."""
